"""Run the tasks of a suite whose data sets a folder contains, resumable, and collect them in one table."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from m2d_hub.errors import ConfigError, M2DError
from m2d_hub.io import json_text, replacing, require_extra
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import canonical_name, resolve

from ..evaluation.report import REPORT_FILE, read_report
from ..finetuning.config import FinetuneConfig
from ..finetuning.presets import load_finetune_preset
from ..finetuning.run import finetune
from ..linear.run import LinearEvalOptions, linear_eval
from ..runs.folder import RunFolder, one_run_in, same_or_refuse
from ..runs.settings import parse_settings
from .tasks import (
    LEARNING_RATE,
    VALID_SHARE,
    DatasetMissingError,
    SuiteTask,
    TaskList,
    chosen_tasks,
    find_suite,
    task_list,
)

logger = logging.getLogger(__name__)

LISTS = "lists"  # folder of the lists that are made
CSV_FILE, JSON_FILE = "suite.csv", "suite.json"
COLUMNS = (
    *("task", "metric", "value", "plus_minus", "low", "high", "seeds"),
    *("paper", "authors", "epoch", "note"),
)


@dataclass(frozen=True)
class TaskResult:
    """A task's figure on its test clips, or the reason why it has none; figures are in percent."""

    task: str
    status: Literal["done", "missing", "failed"]  # missing: the data set is not in the folder
    metric: str = ""
    value: float | None = None  # mean over seeds and folds
    plus_minus: float | None = None  # half of the 95 % interval over seeds
    low: float | None = None  # of the 95 % interval over test clips and seeds
    high: float | None = None
    seeds: int = 0
    paper: Mapping[str, float] = field(default_factory=dict)  # by the paper's name of the model
    authors: Mapping[str, float] = field(default_factory=dict)  # published with weights, by model name
    epoch: str = ""  # which epoch is evaluated
    note: str = ""  # what is missing, differs or failed

    def row(self, model: str) -> list[str]:
        """Return the cells of the table, with the authors' figure of this model if there is one."""
        figures = [_number(number) for number in (self.value, self.plus_minus, self.low, self.high)]
        note = self.note if self.status == "done" else f"{self.status}: {self.note}"
        named = (_named(self.paper), _named(self.authors, model))
        return [self.task, self.metric, *figures, str(self.seeds or ""), *named, self.epoch, note]


@dataclass(frozen=True)
class SuiteResult:
    """Result of a suite: its tasks' figures, their mean, and the folder of the table."""

    suite: str
    model: str
    tasks: tuple[TaskResult, ...]
    authors_mean: Mapping[str, float]  # published, over all tasks, by model name
    out: Path

    @property
    def mean(self) -> float | None:
        """Mean over the tasks that are done, in percent."""
        values = [task.value for task in self.tasks if task.value is not None]
        return sum(values) / len(values) if values else None

    @property
    def done(self) -> int:
        """Number of tasks with a figure."""
        return sum(task.status == "done" for task in self.tasks)

    @property
    def failed(self) -> int:
        """Number of tasks that failed although their data set exists."""
        return sum(task.status == "failed" for task in self.tasks)

    def rows(self) -> list[list[str]]:
        """Return the table as text, the mean last."""
        total = TaskResult("mean", "done", value=self.mean, authors=self.authors_mean)
        last = [*total.row(self.model)[:-1], f"{self.done} of {len(self.tasks)} tasks"]
        return [*(task.row(self.model) for task in self.tasks), last]

    def text(self) -> str:
        """Return the table for a terminal."""
        columns = [index for index, name in enumerate(COLUMNS) if name not in ("low", "high", "seeds")]
        lines = [[row[index] for index in columns] for row in [list(COLUMNS), *self.rows()]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        counts = {"mean": self.mean, "done": self.done, "failed": self.failed}
        return dataclasses.asdict(self) | counts | {"out": str(self.out)}

    def write(self) -> None:
        """Write ``suite.csv`` and ``suite.json``."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([COLUMNS, *self.rows()])
        texts = {CSV_FILE: lines.getvalue(), JSON_FILE: json_text(self.to_dict(), indent=2) + "\n"}
        for name, text in texts.items():
            with replacing(self.out / name) as partial:
                partial.write_text(text, encoding="utf-8")


def _named(figures: Mapping[str, float], model: str = "") -> str:
    chosen = {model: figures[model]} if model in figures else figures
    return "; ".join(f"{value:g} {name}" for name, value in chosen.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def run_suite(
    suite: str,
    *,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tasks: Sequence[str] = (),
    seeds: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> SuiteResult:
    """Evaluate a model on the tasks of a suite whose data sets a folder contains.

    Each task has a folder in ``out`` and is run once; run again, the suite continues with the other tasks.
    ``suite.csv`` and ``suite.json`` are written after each task. A task that fails is reported, and the next
    one starts.

    Args:
        suite: ``paper-linear``, ``paper-finetune``, ``icbhi``, ``sprsound`` or ``imagenet``.
        model: As for :func:`m2d_hub.load_model`.
        data: Folder of data sets: a folder per data set as published, or its list as ``NAME.csv``.
        out: Output folder.
        tasks: Names of the tasks to run; empty: all.
        seeds: Trainings of each task; None: as many as in the paper.
        progress: Show progress bars.
        settings: Fields of :class:`LinearEvalOptions` or :class:`FinetuneConfig` that differ.

    Raises:
        ConfigError: The folder contains none of the data sets, or ``out`` another suite.
    """
    require_extra("training", "a suite")
    chosen, folder, root = find_suite(suite), Path(data), Path(out)
    wanted = chosen_tasks(chosen, tuple(tasks))
    count = chosen.seeds if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"seeds must be a positive integer, got {seeds!r}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a suite runs in one process; fine-tune its tasks separately on several devices.")
    if not folder.is_dir():
        raise ConfigError(f"data must be a folder of data sets, got {folder}.")
    name, results = canonical_name(model), list[TaskResult]()
    with one_run_in(root):
        run = {"suite": chosen.name, "model_sha256": sha256_of_model(resolve(model)), "seeds": count}
        texts = {field_name: str(value) for field_name, value in settings.items()}
        same_or_refuse(RunFolder(root), {**run, "config": {"settings": texts}}, {"model": name})
        for task in wanted:
            common = {"model": model, "out": root / task.name, "progress": progress, "seeds": count}
            results.append(_run_task(task, folder, root, common, settings))
            result = SuiteResult(chosen.name, name, tuple(results), chosen.authors, root)
            result.write()
    if all(task.status == "missing" for task in results):
        raise ConfigError(
            f"{folder} contains none of the data sets of {chosen.name} "
            f"({', '.join(task.dataset for task in wanted)}); each is a folder of its name, as published, or "
            "a list NAME.csv."
        )
    return result


def parse_suite_settings(suite: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read settings of all tasks of a suite, written ``field=value``.

    Raises:
        ConfigError: A field is unknown, or a value is not allowed.
    """
    defaults: Any = LinearEvalOptions() if find_suite(suite).is_linear else FinetuneConfig()
    fields = parse_settings(defaults, texts)
    dataclasses.replace(defaults, **fields)  # checks the values before any task is run
    return fields


def _run_task(
    task: SuiteTask, data: Path, root: Path, common: dict[str, Any], settings: dict[str, Any]
) -> TaskResult:
    known: dict[str, Any] = {"task": task.name, "paper": task.paper, "authors": task.authors}
    try:
        found = task_list(task.dataset, data, root / LISTS)
        folder = root / task.name
        if (folder / REPORT_FILE).is_file():
            logger.info("%s is done, see %s", task.name, folder)
            report = read_report(folder)
        else:
            logger.info("Starting %s with %s", task.name, found.path)
            report = _evaluate(task, found, common, settings)
    except DatasetMissingError as error:
        return TaskResult(status="missing", note=str(error), **known)
    except M2DError as error:
        logger.error("%s failed: %s", task.name, error)
        return TaskResult(status="failed", note=str(error), **known)
    return _done(report, found.note, known)


def _evaluate(
    task: SuiteTask, found: TaskList, common: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    if task.preset is None:
        linear: dict[str, Any] = {
            "learning_rate": LEARNING_RATE,
            "duration": task.duration_s or "mean",
            "valid_share": 0.0 if found.has_valid else VALID_SHARE,
        }
        return linear_eval(data=found.path, **(linear | settings | common)).report
    needs_valid = load_finetune_preset(task.preset).select == "valid"
    chosen = {"select": "test"} if needs_valid and not found.has_valid else {}
    return finetune(task.preset, data=found.path, **(chosen | settings | common)).report


def _done(report: dict[str, Any], note: str, known: dict[str, Any]) -> TaskResult:
    spread = report["over_seeds"]["plus_minus"]
    left_out = len(report.get("left_out") or ())
    notes = [note, f"{left_out} clips cannot be read" if left_out else ""]
    return TaskResult(
        status="done",
        metric=report["metric"],
        value=100 * report["value"],
        plus_minus=None if spread is None else 100 * spread,
        low=100 * report["low"],
        high=100 * report["high"],
        seeds=len(report["per_seed"]),
        epoch=report.get("epoch", "best on the validation clips"),
        note="; ".join(filter(None, notes)),
        **known,
    )
