"""What evaluations amount to side by side: their mean, or their score over epochs or over a swept field."""

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

from m2d_hub.errors import ConfigError
from m2d_hub.io import replacing, require_extra

from ..evaluation.charts import draw_points
from ..evaluation.metrics import over_seeds
from ..evaluation.report import REPORT_FILE, read_report
from ..runs.folder import RunFolder, make_folder, read_config
from ..runs.state import CHECKPOINT_NAME, step_of

TABLE, PICTURE = "summary.csv", "summary.png"
EPOCH = "epoch"  # of the pre-training whose kept checkpoint was evaluated
ALL = "all"


@dataclass(frozen=True)
class SummaryRow:
    """Runs of one value, or all of them; figures are in percent."""

    value: str  # of the field, or "all"
    runs: int
    trainings: int  # of all runs together, each with a seed of its own
    mean: float  # over the trainings
    plus_minus: float | None  # half of its 95 % interval by Student's t; None: there is one training


@dataclass(frozen=True)
class RunSummary:
    """Result of a summary: a row a value, and where table and picture are."""

    metric: str
    by: str | None
    rows: tuple[SummaryRow, ...]
    table: Path
    picture: Path | None


def summarise(
    runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str], by: str | None = None
) -> RunSummary:
    """Averages the trainings of several evaluations, or draws their score over what differs between them.

    Args:
        runs: Folders of linear evaluations or fine-tunings, of one metric.
        out: Folder of ``summary.csv`` and, with ``by``, ``summary.png``.
        by: None: one mean, as of 4 pre-trainings with 5 fine-tunings each; ``"epoch"``: of the kept
            checkpoints that were evaluated; or a field of the evaluations or of their models' pre-trainings.

    Raises:
        ConfigError: A run is not done, has another metric, or does not tell the field.
    """
    require_extra("training", "a summary")
    reports = [_report(Path(run)) for run in runs]
    metrics = sorted({report["metric"] for report in reports})
    if len(metrics) != 1:
        raise ConfigError(f"runs must be one or more, of one metric; got {', '.join(metrics) or 'none'}.")
    values = [
        ALL if by is None else _value(Path(run), report, by)
        for run, report in zip(runs, reports, strict=True)
    ]
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for value, report in zip(values, reports, strict=True):
        groups[value].append(report)
    order = sorted(groups, key=lambda value: (isinstance(value, str), value))
    rows = tuple(_row(value, groups[value]) for value in order)
    folder = Path(out)
    make_folder(folder)
    _write(folder / TABLE, metrics[0], rows)
    picture = None if by is None else folder / PICTURE
    if by is not None and picture is not None:
        points = [(row.mean, row.plus_minus or 0.0) for row in rows]
        draw_points(picture, order, points, by, f"{metrics[0]} (%)")
    return RunSummary(metrics[0], by, rows, folder / TABLE, picture)


def _report(run: Path) -> dict[str, Any]:
    if not (run / REPORT_FILE).is_file():
        raise ConfigError(
            f"{run} holds no {REPORT_FILE}: runs are folders of linear evaluations or fine-tunings that are "
            "done."
        )
    return read_report(run)


def _row(value: object, reports: list[dict[str, Any]]) -> SummaryRow:
    figures = 100 * np.array([figure for report in reports for figure in report["per_seed"].values()])
    plus_minus = over_seeds(figures)["plus_minus"]
    return SummaryRow(str(value), len(reports), len(figures), float(figures.mean()), plus_minus)


def _value(run: Path, report: dict[str, Any], by: str) -> int | float | str:
    """What a run has of a field, as it can be sorted and drawn."""
    if by in report["settings"] and by != EPOCH:
        found = report["settings"][by]
    else:
        found = _of_pretraining(run, Path(report["model"]).expanduser(), by)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else str(found)


def _of_pretraining(run: Path, model: Path, by: str) -> Any:
    folder = RunFolder(model.parent.parent if CHECKPOINT_NAME.fullmatch(model.name) else model.parent)
    if not folder.config_file.is_file():
        raise ConfigError(f"{run} does not tell {by}: its model {model} is of no pre-training run.")
    told = read_config(folder)
    if by == EPOCH:
        if not CHECKPOINT_NAME.fullmatch(model.name):
            raise ConfigError(f"{run} is of no kept checkpoint, but of {model}: leave it out of by='epoch'.")
        return step_of(model) / told["steps_per_epoch"]
    if by not in told["config"]:
        known = ", ".join(sorted(told["config"]))
        raise ConfigError(f"by={by!r} is no field of {run} nor of its model's pre-training ({known}).")
    return told["config"][by]


def _write(path: Path, metric: str, rows: Sequence[SummaryRow]) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["value", "metric", "runs", "trainings", "mean", "plus_minus"])
    for row in rows:
        spread = "" if row.plus_minus is None else f"{row.plus_minus:.2f}"
        writer.writerow([row.value, metric, row.runs, row.trainings, f"{row.mean:.2f}", spread])
    with replacing(path) as partial:
        partial.write_text(lines.getvalue(), encoding="utf-8")
