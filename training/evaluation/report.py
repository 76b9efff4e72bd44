"""The report of an evaluation: ``report.json``, a plot of the classes, and the worst clips.

Shapes: N test clips, C classes, S seeds.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2d_hub.checks import Numbers
from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import as_cell, json_text, reading_file, replacing_folder

from .charts import draw_average_precision, draw_confusion
from .labelled import LabelledList, Subset
from .metrics import Interval, Metric, average_precisions, bootstrap_interval, over_seeds

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
CONFUSION_FILE = "confusion.png"
PRECISION_FILE = "average_precision.png"
WORST_FILE = "worst.csv"
REPORT_FILES = (REPORT_FILE, CONFUSION_FILE, PRECISION_FILE, WORST_FILE)
ANSWER_FILES = (
    *REPORT_FILES,
    *("config.json", "errors.csv", "model"),
    *("learning_curve.png", "layers.png", "mix.png"),
)  # everything that an evaluation may write into its folder, besides features and the log
WORST_COLUMNS = ("row", "file", "true", "predicted", "probability", "probability_of_true")


@dataclass(frozen=True)
class ScoredFold:
    """Scores of one fold's test clips by the models of all seeds."""

    name: str  # of the fold
    subset: Subset  # the test clips
    scores: Tensor  # (S, N, C) probabilities


@dataclass(frozen=True)
class Evaluation:
    """The scores of all test clips of a task, and the figures computed from them."""

    labelled: LabelledList
    metric: Metric
    seeds: Sequence[int]
    folds: Sequence[ScoredFold]

    @cached_property
    def scores(self) -> Tensor:
        """(S, N, C), fold after fold."""
        return torch.cat([scored.scores for scored in self.folds], dim=1).float().cpu()

    @cached_property
    def targets(self) -> Tensor:
        """(N, C) multi-hot, fold after fold."""
        return torch.cat([scored.subset.targets for scored in self.folds])

    @cached_property
    def interval(self) -> Interval:
        """Mean of the metric over folds and seeds, and its 95 % interval over clips and seeds."""
        sizes = [len(scored.subset) for scored in self.folds]
        folds = np.repeat(np.arange(len(sizes)), sizes).tolist()
        return bootstrap_interval(list(self.scores), self.targets, self.metric, folds=folds)

    @cached_property
    def by_fold(self) -> np.ndarray:
        """The metric of each fold and seed (folds, S)."""
        return np.array(
            [
                [self.metric(scores.float().cpu(), scored.subset.targets) for scores in scored.scores]
                for scored in self.folds
            ]
        )

    @cached_property
    def by_class(self) -> Tensor:
        """Recall of each class, or its average precision in a multi-label task (C,); NaN without clips."""
        if not self.labelled.is_multi_label:
            return self.confusion.diagonal() / self.confusion.sum(dim=1)
        precisions = [
            average_precisions(scores.float().cpu(), scored.subset.targets)
            for scored in self.folds
            for scores in scored.scores
        ]
        return torch.stack(precisions).nanmean(dim=0)

    @cached_property
    def confusion(self) -> Tensor:
        """Test clips by true class and predicted class (C, C), averaged over seeds."""
        size = self.targets.shape[1]
        pairs = self.targets.argmax(dim=1) * size + self.scores.argmax(dim=2)  # (S, N)
        counts = torch.bincount(pairs.flatten(), minlength=size * size)
        return counts.reshape(size, size).double() / len(self.scores)

    @property
    def unseen(self) -> list[str]:
        """Classes without test clips, which do not count in the metric."""
        present = self.targets.any(dim=0).tolist()
        return [
            label for label, is_present in zip(self.labelled.labels, present, strict=True) if not is_present
        ]


def require_own(folder: Path, method: str, names: Sequence[str] = ANSWER_FILES) -> None:
    """Check that an evaluation overwrites nothing but an earlier answer of the same kind.

    Args:
        folder: Output folder, which may be missing.
        method: Kind of the evaluation, as its report states it.
        names: Files and folders that the evaluation writes.

    Raises:
        ConfigError: The folder contains one of the names, but no report of this method.
    """
    present = [name for name in names if os.path.lexists(folder / name)]
    with contextlib.suppress(CheckpointError):
        if not present or read_report(folder).get("method") == method:
            return
    raise ConfigError(
        f"{folder} contains {present[0]}, which is not the result of {method} and would be overwritten; "
        "choose another output folder."
    )


@contextlib.contextmanager
def replacing_answer(folder: Path, names: Sequence[str] = ANSWER_FILES) -> Iterator[Path]:
    """Write an answer that replaces an earlier one only when all of its files are complete.

    Args:
        folder: Output folder.
        names: Files and folders of an earlier answer, which are removed.

    Yields:
        An empty folder to write the new answer into.

    Raises:
        OSError: The disk is full; the message names the folder.
    """
    complete = folder / ".answer"
    with replacing_folder(complete) as partial:
        yield partial
    for name in names:
        old = folder / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for path in complete.iterdir():
        os.replace(path, folder / path.name)
    complete.rmdir()


def write_report(folder: Path, evaluation: Evaluation, details: dict[str, Any]) -> dict[str, Any]:
    """Write ``report.json``, ``confusion.png`` or ``average_precision.png``, and ``worst.csv``.

    Returns:
        The report as written.
    """
    labelled, interval = evaluation.labelled, evaluation.interval
    if evaluation.unseen and labelled.is_multi_label:
        logger.warning(
            "%d of %d classes have no test clip and do not count in the mean; %s lists them.",
            len(evaluation.unseen),
            len(labelled.labels),
            REPORT_FILE,
        )
    report = _summary(evaluation) | details
    text = json_text(report, indent=2) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    _write_worst(folder / WORST_FILE, evaluation)
    title = f"{evaluation.metric.name} {interval}"
    if labelled.is_multi_label:
        draw_average_precision(folder / PRECISION_FILE, evaluation.by_class, labelled.labels, title)
    else:
        draw_confusion(folder / CONFUSION_FILE, evaluation.confusion, labelled.labels, title)
    return json.loads(text)


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report of a folder.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = folder / REPORT_FILE
    with reading_file(path, "a report", "Delete it and evaluate again.", CheckpointError):
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        figures = [report["value"], report["low"], report["high"], *report["per_seed"].values()]
        spread = report["over_seeds"]["plus_minus"]
        figures += [] if spread is None else [spread]
        if wrong := [figure for figure in figures if figure not in Numbers()]:
            raise TypeError(f"a figure is {wrong[0]!r}")
        if not isinstance(report["metric"], str) or not report["per_seed"]:
            raise TypeError("metric or figures are missing")
    return report


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    labelled, interval = evaluation.labelled, evaluation.interval
    clips = evaluation.targets.sum(dim=0).int().tolist()
    kind = "average_precision" if labelled.is_multi_label else "recall"
    by_seed = evaluation.by_fold.mean(axis=0)
    summary: dict[str, Any] = {
        "metric": evaluation.metric.name,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "interval": "95 %, bootstrapped over test clips and seeds; Clopper-Pearson where all resamples agree",
        "data": labelled.name,
        "test_clips": len(evaluation.targets),
        "classes": len(labelled.labels),
        "classes_without_test_clips": evaluation.unseen,
        "per_seed": dict(zip(map(str, evaluation.seeds), by_seed.tolist(), strict=True)),
        "over_seeds": over_seeds(by_seed),
        "per_class": {
            label: {kind: value, "test_clips": count}
            for label, value, count in zip(labelled.labels, evaluation.by_class.tolist(), clips, strict=True)
        },
    }
    if len(evaluation.folds) > 1:
        names = [scored.name for scored in evaluation.folds]
        summary["per_round"] = dict(zip(names, evaluation.by_fold.mean(axis=1).tolist(), strict=True))
    if not labelled.is_multi_label:
        summary["confusion"] = evaluation.confusion.tolist()
    return summary


def _write_worst(path: Path, evaluation: Evaluation) -> None:
    """Write the clips with a wrong class above a true one, the largest margin first."""
    labels, targets = evaluation.labelled.labels, evaluation.targets.bool()
    scores = evaluation.scores.mean(dim=0)
    wrong, predicted = scores.masked_fill(targets, -1.0).max(dim=1)
    true = scores.masked_fill(~targets, 2.0).min(dim=1).values
    files = [file for scored in evaluation.folds for file in scored.subset.files]
    rows = [row for scored in evaluation.folds for row in scored.subset.rows]
    margin = wrong - true
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as lines:
        writer = csv.writer(lines)
        writer.writerow(WORST_COLUMNS)
        for clip in margin.argsort(descending=True, stable=True).tolist():
            if margin[clip] <= 0:
                break
            names = ";".join(labels[index] for index in targets[clip].nonzero()[:, 0].tolist())
            cells = (os.fspath(files[clip]), names, labels[int(predicted[clip])])
            probabilities = f"{float(wrong[clip]):.4f}", f"{float(true[clip]):.4f}"
            writer.writerow([rows[clip], *map(as_cell, cells), *probabilities])
