"""All trainings' metrics of a fine-tuning in one file, and their learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.io import json_text, replacing

from ..evaluation.charts import draw_curves
from ..runs.folder import RunFolder
from ..runs.log import read_metrics

CURVES_FILE = "learning_curve.png"


def write_metrics(folder: RunFolder, trainings: Sequence[tuple[str, int, Path]], metric: str) -> None:
    """Writes ``metrics.jsonl`` and draws the curves of losses and scores.

    Args:
        folder: Of the run.
        trainings: Fold, seed and file of metrics of each.
        metric: Its name.
    """
    losses: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    has_rounds = len({name for name, *_ in trainings}) > 1
    with replacing(folder.metrics_file) as partial, partial.open("w", encoding="utf-8") as lines:
        for round_name, seed, file in trainings:
            steps = read_metrics(file)
            for values in steps:
                lines.write(json_text({"round": round_name, "seed": seed, **values}) + "\n")
            name = f"{round_name}, seed {seed}" if has_rounds else f"seed {seed}"
            losses[f"{name}, train"] = by_epoch(steps, "loss")
            losses[f"{name}, valid"] = by_epoch(steps, "validation_loss")
            scores[name] = by_epoch(steps, "validation_score")
    draw_curves(folder.root / CURVES_FILE, {"loss": losses, f"{metric} on valid": scores})


def by_epoch(steps: list[dict[str, Any]], name: str) -> list[float]:
    """Mean of a metric over the steps of each epoch; NaN for epochs without it."""
    values: dict[int, list[float]] = {}
    for step in steps:
        own = values.setdefault(math.ceil(step["epoch"] - 1e-9), [])
        own += [step[name]] if step.get(name) is not None else []
    return [float(np.mean(values[epoch])) if values[epoch] else math.nan for epoch in sorted(values)]
