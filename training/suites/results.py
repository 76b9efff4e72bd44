"""What a suite comes to: a result a task, their mean, and the table of both."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from m2d_hub.io import json_text, replacing

CSV_FILE, JSON_FILE = "suite.csv", "suite.json"
COLUMNS = (
    "task",
    "metric",
    "value",
    "plus_minus",
    "low",
    "high",
    "seeds",
    "paper",
    "authors",
    "epoch",
    "note",
)


@dataclass(frozen=True)
class TaskResult:
    """A task's figure on its test clips, or why there is none; figures are in percent."""

    task: str
    status: Literal["done", "missing", "failed"]  # missing: the folder does not hold its data set
    metric: str = ""
    value: float | None = None  # mean over seeds and folds
    plus_minus: float | None = None  # half of the 95 % interval over seeds
    low: float | None = None  # of the 95 % interval over test clips and seeds
    high: float | None = None
    seeds: int = 0
    paper: Mapping[str, float] = field(default_factory=dict)  # by the paper's name of the model
    authors: Mapping[str, float] = field(default_factory=dict)  # published with weights, by alias
    epoch: str = ""  # which one counts
    note: str = ""  # what is missing, differs or went wrong


@dataclass(frozen=True)
class SuiteResult:
    """Result of a suite: its tasks' figures, their mean, and where the table is."""

    suite: str
    model: str
    tasks: tuple[TaskResult, ...]
    mean: float | None  # over the tasks that are done, %
    authors_mean: Mapping[str, float]  # published, over all tasks, by alias
    out: Path

    @property
    def done(self) -> int:
        """Tasks that have a figure."""
        return sum(task.status == "done" for task in self.tasks)

    @property
    def failed(self) -> int:
        """Tasks that could not be run although something of their data is there."""
        return sum(task.status == "failed" for task in self.tasks)

    def rows(self) -> list[list[str]]:
        """The table as text, the mean last."""
        rows = [_row(task, self.model) for task in self.tasks]
        told = f"{self.done} of {len(self.tasks)} tasks"
        mean = [
            "mean",
            "",
            _number(self.mean),
            "",
            "",
            "",
            "",
            "",
            _named(self.authors_mean, self.model),
            "",
            told,
        ]
        return [*rows, mean]

    def text(self) -> str:
        """The table for people."""
        columns = [place for place, name in enumerate(COLUMNS) if name not in ("low", "high", "seeds")]
        lines = [[row[place] for place in columns] for row in [list(COLUMNS), *self.rows()]]
        widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
        padded = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"out": str(self.out), "done": self.done, "failed": self.failed}


def write_table(result: SuiteResult) -> None:
    """Writes ``suite.csv`` and ``suite.json``."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([COLUMNS, *result.rows()])
    for name, text in (
        (CSV_FILE, lines.getvalue()),
        (JSON_FILE, json_text(result.to_dict(), indent=2) + "\n"),
    ):
        with replacing(result.out / name) as partial:
            partial.write_text(text, encoding="utf-8")


def mean_of(tasks: Sequence[TaskResult]) -> float | None:
    """Mean of the figures that are there."""
    values = [task.value for task in tasks if task.value is not None]
    return sum(values) / len(values) if values else None


def _row(task: TaskResult, model: str) -> list[str]:
    figures = [_number(number) for number in (task.value, task.plus_minus, task.low, task.high)]
    note = task.note if task.status == "done" else f"{task.status}: {task.note}"
    named = (_named(task.paper), _named(task.authors, model))
    return [task.task, task.metric, *figures, str(task.seeds or ""), *named, task.epoch, note]


def _named(figures: Mapping[str, float], model: str = "") -> str:
    """Figures with their models; that of the model at hand alone where it has one."""
    chosen = {model: figures[model]} if model in figures else figures
    return "; ".join(f"{value:g} {name}" for name, value in chosen.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
