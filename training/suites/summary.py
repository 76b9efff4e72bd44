"""Summary of several evaluations: their mean, or their score over epochs or over a field."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import reading, replacing, require_extra

from ..evaluation.charts import draw_points
from ..evaluation.metrics import over_seeds
from ..evaluation.report import REPORT_FILE, read_report
from ..runs.folder import RunFolder, make_folder, read_config
from ..runs.state import CHECKPOINT_NAME, step_of

TABLE, PLOT = "summary.csv", "summary.png"
EPOCH = "epoch"  # of the pre-training whose kept checkpoint was evaluated
ALL = "all"


@dataclass(frozen=True)
class SummaryRow:
    """Runs with one value of the field, or all of them; figures are in percent."""

    value: str  # of the field, or "all"
    runs: int
    trainings: int  # of all runs together, each with its own seed
    mean: float  # over the trainings
    plus_minus: float | None  # half of its 95 % interval by Student's t; None: one training only


@dataclass(frozen=True)
class RunSummary:
    """Result of a summary: one row per value, the table and the plot."""

    metric: str
    by: str | None
    rows: tuple[SummaryRow, ...]
    table: Path
    picture: Path | None


def summarise(
    runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str], by: str | None = None
) -> RunSummary:
    """Average the trainings of several evaluations, or plot their score over a field that differs.

    Args:
        runs: Folders of linear evaluations or fine-tunings, of one metric.
        out: Folder of ``summary.csv`` and, with ``by``, ``summary.png``.
        by: None: one mean over all trainings; ``"epoch"``: of the kept checkpoints that were evaluated; or a
            field of the evaluations or of their models' pre-trainings.

    Raises:
        ConfigError: A run is not finished, has another metric, or has no value for the field.
        CheckpointError: A report or configuration is damaged.
    """
    require_extra("training", "a summary")
    reports = {Path(run): _report(Path(run)) for run in runs}
    metrics = sorted({report["metric"] for report in reports.values()})
    if len(metrics) != 1:
        raise ConfigError(f"runs must be one or more, of one metric; got {', '.join(metrics) or 'none'}.")
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for run, report in reports.items():
        groups[ALL if by is None else _value(run, report, by)].append(report)
    order = sorted(groups, key=lambda value: (isinstance(value, str), value))
    rows = tuple(_row(value, groups[value]) for value in order)
    folder = Path(out)
    make_folder(folder)
    _write(folder / TABLE, metrics[0], rows)
    plot = None
    if by is not None:
        plot = folder / PLOT
        points = [(row.mean, row.plus_minus or 0.0) for row in rows]
        draw_points(plot, order, points, by, f"{metrics[0]} (%)")
    return RunSummary(metrics[0], by, rows, folder / TABLE, plot)


def _report(run: Path) -> dict[str, Any]:
    if not (run / REPORT_FILE).is_file():
        raise ConfigError(
            f"{run} has no {REPORT_FILE}; give folders of finished linear evaluations or fine-tunings."
        )
    return read_report(run)


def _row(value: object, reports: list[dict[str, Any]]) -> SummaryRow:
    figures = 100 * np.array([figure for report in reports for figure in report["per_seed"].values()])
    plus_minus = over_seeds(figures)["plus_minus"]
    return SummaryRow(str(value), len(reports), len(figures), float(figures.mean()), plus_minus)


def _value(run: Path, report: dict[str, Any], by: str) -> int | float | str:
    """Return a run's value of a field, as it is sorted and plotted."""
    hint = "Delete it and evaluate again."
    with reading(run / REPORT_FILE, "the report of an evaluation", hint, CheckpointError):
        settings, model = dict(report.get("settings", {})), Path(report["model"]).expanduser()
    found = settings[by] if by in settings and by != EPOCH else _of_pretraining(run, model, by)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else str(found)


def _of_pretraining(run: Path, model: Path, by: str) -> Any:
    folder = RunFolder(model.parent.parent if CHECKPOINT_NAME.fullmatch(model.name) else model.parent)
    if not folder.config_file.is_file():
        raise ConfigError(f"{run} has no value for {by}: its model {model} is not of a pre-training run.")
    values = read_config(folder)
    if by != EPOCH:
        if by not in values["config"]:
            known = ", ".join(sorted(values["config"]))
            raise ConfigError(f"by={by!r} is not a field of {run} or of its model's pre-training ({known}).")
        return values["config"][by]
    if not CHECKPOINT_NAME.fullmatch(model.name):
        raise ConfigError(f"{run} evaluates {model}, which is not a kept checkpoint; omit it for by='epoch'.")
    hint = "Give runs whose pre-training is intact."
    with reading(folder.config_file, "the configuration of a pre-training", hint, CheckpointError):
        return step_of(model) / int(values["steps_per_epoch"])


def _write(path: Path, metric: str, rows: Sequence[SummaryRow]) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["value", "metric", "runs", "trainings", "mean", "plus_minus"])
    for row in rows:
        spread = "" if row.plus_minus is None else f"{row.plus_minus:.2f}"
        writer.writerow([row.value, metric, row.runs, row.trainings, f"{row.mean:.2f}", spread])
    with replacing(path) as partial:
        partial.write_text(lines.getvalue(), encoding="utf-8")
