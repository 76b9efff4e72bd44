"""Runs the tasks of a suite that a folder holds, one after another, resumable, into one table."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2d_hub.errors import ConfigError, M2DError
from m2d_hub.io import require_extra
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import canonical_name, resolve

from ..evaluation.report import REPORT_FILE, read_report
from ..finetuning.config import FinetuneConfig
from ..finetuning.presets import load_finetune_preset
from ..finetuning.run import finetune
from ..linear.run import LinearEvalOptions, linear_eval
from ..runs.folder import RunFolder, one_run_in, same_or_refuse
from ..runs.settings import parse_settings
from .results import SuiteResult, TaskResult, mean_of, write_table
from .task_lists import NotThereError, TaskList, task_list
from .tasks import LEARNING_RATE, VALID_SHARE, Suite, SuiteTask, chosen_tasks, find_suite

logger = logging.getLogger(__name__)

LISTS = "lists"  # folder of the lists that are made


def run_suite(
    suite: str,
    *,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tasks: tuple[str, ...] | list[str] = (),
    seeds: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> SuiteResult:
    """Evaluates a model on the tasks of a suite whose data sets a folder holds.

    Each task has a folder in ``out`` and is done once; run again, the suite goes on with those that are not.
    ``suite.csv`` and ``suite.json`` are written after each task; one that fails is told of, and the next
    begins.

    Args:
        suite: ``paper-linear``, ``paper-finetune``, ``icbhi``, ``sprsound`` or ``imagenet``.
        model: As for :func:`m2d_hub.load_model`.
        data: Folder that holds the data sets: a folder of each as published, or its list as ``NAME.csv``.
        out: Folder of the answer.
        tasks: Those to run; none: all.
        seeds: Trainings of each task; None: as many as in the paper.
        progress: Whether to tell how far it is.
        settings: Fields of :class:`LinearEvalOptions` or :class:`FinetuneConfig` to have otherwise.

    Raises:
        ConfigError: The folder holds none of the data sets, or ``out`` another suite.
    """
    require_extra("training", "a suite")
    chosen, folder, place = find_suite(suite), Path(data), Path(out)
    wanted = chosen_tasks(chosen, tuple(tasks))
    count = chosen.seeds if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"seeds must be a positive integer, got {seeds!r}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a suite runs in one process; fine-tune its tasks one by one on several devices.")
    if not folder.is_dir():
        raise ConfigError(f"data must be a folder that holds data sets, got {folder}.")
    with one_run_in(place):
        _write_or_compare(RunFolder(place), chosen, model, count, settings)
        runner = _Runner(chosen, model, folder, place, count, progress, settings)
        return runner.run(wanted)


def parse_suite_settings(suite: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read settings of all tasks of a suite, written ``field=value``.

    Raises:
        ConfigError: A field is unknown, or a value is not allowed.
    """
    defaults: Any = LinearEvalOptions() if find_suite(suite).is_linear else FinetuneConfig()
    fields = parse_settings(defaults, texts)
    dataclasses.replace(defaults, **fields)  # checks the values before any task is run
    return fields


def _write_or_compare(
    folder: RunFolder, suite: Suite, model: str | os.PathLike[str], seeds: int, settings: dict[str, Any]
) -> None:
    run = {"suite": suite.name, "model_sha256": sha256_of_model(resolve(model)), "seeds": seeds}
    texts = {name: str(value) for name, value in settings.items()}
    same_or_refuse(folder, {**run, "config": {"settings": texts}}, {"model": canonical_name(model)})


class _Runner:
    """A suite on its way."""

    def __init__(
        self,
        suite: Suite,
        model: str | os.PathLike[str],
        data: Path,
        out: Path,
        seeds: int,
        progress: bool,
        settings: dict[str, Any],
    ):
        self.suite, self.model, self.data, self.out = suite, model, data, out
        self.seeds, self.progress, self.settings = seeds, progress, settings

    def run(self, tasks: tuple[SuiteTask, ...]) -> SuiteResult:
        """Runs what is not done, and writes the table after each task."""
        results: list[TaskResult] = []
        answer = self._result(results)
        for task in tasks:
            results.append(self._task(task))
            answer = self._result(results)
            write_table(answer)
        if all(result.status == "missing" for result in results):
            names = ", ".join(task.dataset for task in tasks)
            raise ConfigError(
                f"{self.data} holds none of the data sets of {self.suite.name} ({names}): each has a folder "
                "of its name there, as published, or is a list NAME.csv."
            )
        return answer

    def _result(self, results: list[TaskResult]) -> SuiteResult:
        name = canonical_name(self.model)
        return SuiteResult(
            self.suite.name, name, tuple(results), mean_of(results), self.suite.authors, self.out
        )

    def _task(self, task: SuiteTask) -> TaskResult:
        known: dict[str, Any] = {"task": task.name, "paper": task.paper, "authors": task.authors}
        try:
            found = task_list(task.dataset, self.data, self.out / LISTS)
            report_file = self.out / task.name / REPORT_FILE
            if report_file.is_file():
                logger.info("%s is done, see %s", task.name, report_file.parent)
                report = read_report(report_file.parent)
            else:
                logger.info("%s begins, with %s", task.name, found.path)
                report = self._evaluate(task, found)
        except NotThereError as error:
            return TaskResult(status="missing", note=str(error), **known)
        except M2DError as error:
            logger.error("%s failed: %s", task.name, error)
            return TaskResult(status="failed", note=str(error), **known)
        return _done(report, found.note, known)

    def _evaluate(self, task: SuiteTask, found: TaskList) -> dict[str, Any]:
        common: dict[str, Any] = {
            "model": self.model,
            "data": found.path,
            "out": self.out / task.name,
            "progress": self.progress,
        }
        if task.preset is None:
            linear: dict[str, Any] = {
                "learning_rate": LEARNING_RATE,
                "duration": task.duration_s or "mean",
                "valid_share": 0.0 if found.has_valid else VALID_SHARE,
                "seeds": self.seeds,
            }
            return linear_eval(**(linear | self.settings | common)).report
        asks_valid = load_finetune_preset(task.preset).select == "valid"
        chosen = {"select": "test"} if asks_valid and not found.has_valid else {}
        return finetune(task.preset, **common, seeds=self.seeds, **(chosen | self.settings)).report


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
