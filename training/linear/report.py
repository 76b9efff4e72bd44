"""The report of a linear evaluation: of the best layer, and how all of them compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.charts import draw_curves, draw_layers, draw_mix
from ..evaluation.linear_rounds import Outcome, RoundFit
from ..evaluation.report import write_report

METHOD = "linear evaluation"
CURVES_FILE = "learning_curve.png"
LAYERS_FILE = "layers.png"
MIX_FILE = "mix.png"


def report_outcomes(
    folder: Path, outcomes: Sequence[Outcome], best: Outcome, details: dict[str, Any]
) -> dict[str, Any]:
    """Writes the report and its pictures.

    Args:
        folder: Of the run.
        outcomes: Of all layers that were asked for.
        best: That which is best on the valid clips: the report is about it.
        details: What else ``report.json`` is to say.

    Returns:
        The report as written.
    """
    details = {
        "method": METHOD,
        "layer": best.layer,
        "trainings": [_training(best, fitted) for fitted in best.rounds],
        **details,
    }
    if best.layer == "mix":
        weights = torch.cat([fitted.fit.mix.cpu() for fitted in best.rounds])  # (rounds · S, L)
        details["mix_weights"] = weights.mean(dim=0).tolist()
        draw_mix(folder / MIX_FILE, weights)
    if len(outcomes) > 1:
        details["layers"] = [_layer(outcome) for outcome in outcomes]
        tests = [outcome.evaluation.interval for outcome in outcomes]
        valid = [outcome.valid_score for outcome in outcomes]
        draw_layers(folder / LAYERS_FILE, valid, tests, best.settings.metric.name)
    _draw_curves(folder / CURVES_FILE, best)
    return write_report(folder, best.evaluation, details)


def _training(outcome: Outcome, fitted: RoundFit) -> dict[str, Any]:
    fit = fitted.fit
    return {
        "round": fitted.round.name,
        "clips": {
            "train": len(fitted.round.train),
            "valid": len(fitted.round.valid),
            "test": len(fitted.round.test),
        },
        "seeds": list(outcome.seeds),
        "learning_rate": fit.learning_rate,
        "best_epoch": fit.best_epoch.tolist(),
        "has_converged": fit.has_converged.tolist(),
        "valid_score": fit.score.tolist(),
        "valid_loss": fit.loss.tolist(),
    }


def _layer(outcome: Outcome) -> dict[str, Any]:
    interval = outcome.evaluation.interval
    return {
        "layer": int(outcome.layer),
        "valid_score": outcome.valid_score,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
    }


def _draw_curves(path: Path, outcome: Outcome) -> None:
    """Loss and score by epoch of the first round, a line a seed."""
    curves = outcome.rounds[0].fit.curves
    lines = {
        name: {
            f"{split}, seed {seed}": values.tolist()
            for seed, values in zip(outcome.seeds, curves[curve], strict=True)
        }
        for name, split, curve in (
            ("train loss", "train", "train_loss"),
            ("valid loss", "valid", "valid_loss"),
            (f"valid {outcome.settings.metric.name}", "valid", "valid_score"),
        )
    }
    draw_curves(path, lines)
