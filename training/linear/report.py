"""The result of a linear evaluation on disk: report, plots, and the model with its linear layer.

Shapes: S seeds, L layers, C classes, K features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_hub.config import Activation
from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D

from ..evaluation.charts import draw_curves, draw_layers, draw_mix
from ..evaluation.linear_folds import FoldFit, LinearResult
from ..evaluation.report import write_report

METHOD = "linear evaluation"
CURVES_FILE = "learning_curve.png"
LAYERS_FILE = "layers.png"
MIX_FILE = "mix.png"


def report_results(
    folder: Path, results: Sequence[LinearResult], best: LinearResult, details: dict[str, Any]
) -> dict[str, Any]:
    """Write the report and its plots.

    Returns:
        The report as written.
    """
    details = {
        "method": METHOD,
        "layer": best.layer,
        "trainings": [_training(best, fitted) for fitted in best.folds],
        **details,
    }
    if best.layer == "mix":
        weights = torch.cat([fitted.fit.mix.cpu() for fitted in best.folds])  # (folds · S, L)
        details["mix_weights"] = weights.mean(dim=0).tolist()
        draw_mix(folder / MIX_FILE, weights)
    if len(results) > 1:
        details["layers"] = [_layer(result) for result in results]
        tests = [result.evaluation.interval for result in results]
        valid = [result.valid_score for result in results]
        draw_layers(folder / LAYERS_FILE, valid, tests, best.settings.metric.name)
    _draw_curves(folder / CURVES_FILE, best)
    return write_report(folder, best.evaluation, details)


def _training(result: LinearResult, fitted: FoldFit) -> dict[str, Any]:
    fold, fit = fitted.fold, fitted.fit
    return {
        "round": fold.name,
        "clips": {"train": len(fold.train), "valid": len(fold.valid), "test": len(fold.test)},
        "seeds": list(result.seeds),
        "learning_rate": fit.learning_rate,
        "best_epoch": fit.best_epoch.tolist(),
        "has_converged": fit.has_converged.tolist(),
        "valid_score": fit.score.tolist(),
        "valid_loss": fit.loss.tolist(),
    }


def _layer(result: LinearResult) -> dict[str, Any]:
    return {
        "layer": int(result.layer),
        "valid_score": result.valid_score,
        **vars(result.evaluation.interval),
    }


def _draw_curves(path: Path, result: LinearResult) -> None:
    """Draw loss and score of the first fold by epoch, one line per seed."""
    curves = result.folds[0].fit.curves
    panels = (
        ("train loss", "train", "train_loss"),
        ("valid loss", "valid", "valid_loss"),
        (f"valid {result.settings.metric.name}", "valid", "valid_score"),
    )
    lines = {
        panel: {
            f"{split}, seed {seed}": values.tolist()
            for seed, values in zip(result.seeds, curves[curve], strict=True)
        }
        for panel, split, curve in panels
    }
    draw_curves(path, lines)


def save_linear_model(folder: Path, model: M2D, result: LinearResult) -> None:
    """Write a folder that :func:`m2d_hub.load_model` reads; the model's head is replaced.

    The head's logits are the mean of the logits of all folds' and seeds' layers. The standardisation becomes
    the running statistics of the head's batch normalisation.

    Args:
        folder: Created if missing.
        model: The encoder of the features, which must be the mean over the last layer's frames.
        result: The layers.

    Raises:
        ConfigError: The layers are not for this encoder's clip features.
    """
    width, labelled = result.folds[0].fit.weight.shape[2], result.labelled
    if width != model.frame_dim:
        raise ConfigError(f"the layers take {width} features, but the model's clips have {model.frame_dim}.")
    mean, var = (
        torch.stack([getattr(fitted.standardiser, name).flatten() for fitted in result.folds])
        .cpu()
        .double()
        .mean(dim=0)
        for name in ("mean", "var")
    )
    weight, bias = _mean_layer(result.folds)
    activation: Activation = "sigmoid" if labelled.is_multi_label else "softmax"
    model.set_head(len(labelled.labels), features="frames", activation=activation, labels=labelled.labels)
    head = model.required_head()
    head.norm.running_mean = mean.to(head.linear.weight)
    head.norm.running_var = var.to(head.linear.weight)
    with torch.no_grad():
        head.linear.weight.copy_(weight * (var + head.norm.eps).sqrt())
        head.linear.bias.copy_(bias + weight @ mean)
    model.eval().save_pretrained(folder)


def _mean_layer(folds: Sequence[FoldFit]) -> tuple[Tensor, Tensor]:
    """Return weight (C, K) and bias (C,) for unstandardised features, averaged over folds and seeds."""
    weights, biases = [], []
    for fitted in folds:
        mean = fitted.standardiser.mean.flatten().cpu().double()
        scale = fitted.standardiser.scale.flatten().cpu().double()
        scaled = fitted.fit.weight.cpu().double() / scale  # (S, C, K)
        weights.append(scaled.mean(dim=0))
        biases.append((fitted.fit.bias.cpu().double() - scaled @ mean).mean(dim=0))
    return torch.stack(weights).mean(dim=0), torch.stack(biases).mean(dim=0)
