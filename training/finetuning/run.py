"""A whole fine-tuning run: every round of the data with every seed, resumed where it stopped, and its report.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m2d_hub.errors import ConfigError
from m2d_hub.io import replacing_folder, require_extra
from m2d_hub.nn.compiled import compile_blocks

from ..data.sampling import EpochPlan, balancing_weights
from ..data.skipped import LeftOut, write_errors
from ..evaluation.labelled import Fold
from ..evaluation.metrics import (
    Interval,
    sensitivity_specificity,
)
from ..evaluation.report import (
    REPORT_FILES,
    Evaluation,
    ScoredFold,
    read_report,
    replacing_answer,
    require_own,
    write_report,
)
from ..evaluation.unreadable import warn_of_skipped
from ..runs.devices import build_accelerator, resolve_precision
from ..runs.folder import RunFolder, one_run_in
from ..runs.resolved import read_config
from ..runs.schedules import warn_of_warmup
from ..runs.settings import require_given, with_fields
from ..runs.stopping import StopRequests, stop_requests
from .config import FinetuneConfig
from .curves import write_metrics
from .images import build_image_learner
from .learner import Learner
from .loop import FinetuneTrainer, TaskObjective, inverse_class_weights
from .member import (
    Member,
    MemberResult,
    read_result,
    save_result,
)
from .model import build_model
from .presets import load_finetune_preset
from .resolved import write_or_compare_run
from .sounds import SoundLearner
from .task import Task, read_task, without_unreadable

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

METHOD = "fine-tuning"
TRAININGS = "trainings"  # folder with a folder per round and seed
EPOCH_TOLD = {
    "valid": "best on the validation clips",
    "last": "the last",
    "test": "best on test, as in the paper where a task has no validation split",
}


@dataclass(frozen=True)
class FinetuneOptions:
    """Model, data and folder of a fine-tuning, beside its configuration."""

    name: str  # of the preset
    model: str  # as for m2d_hub.load_model
    data: str  # CSV with file, label and split
    out: Path
    seeds: int = 1  # trainings of each round, with seeds that count up
    progress: bool = True


@dataclass(frozen=True)
class FinetuneResult:
    """Result of a fine-tuning: its test figure, and where its model and its report are."""

    metric: str  # accuracy, mAP, or ICBHI's score
    interval: Interval
    report: dict[str, Any]  # as report.json has it
    out: Path
    model: Path  # for m2d_hub.load_model; of pictures for timm.create_model("local-dir:…", pretrained=True)
    left_out: int  # clips that cannot be read, see errors.csv


def finetune(
    preset: str | FinetuneConfig,
    options: FinetuneOptions | None = None,
    *,
    model: str | os.PathLike[str] = "",
    data: str | os.PathLike[str] = "",
    out: str | os.PathLike[str] = "",
    seeds: int = 1,
    progress: bool = True,
    **settings: Any,
) -> FinetuneResult:
    """Trains and tests every round with every seed, going on from what is in ``out``.

    Each training keeps its best epoch by the validation clips. ``export/`` is the model of the first round
    and the first seed; ``report.json`` is about all of them.

    Args:
        preset: Its name, or a configuration of one's own.
        options: All that follows but the settings, in one object.
        model: As for :func:`m2d_hub.load_model`.
        data: CSV with file, label and split, or a folder ``train/CLASS/``, ``valid/CLASS/`` ...
        out: Folder of the run.
        seeds: Trainings of each round, with seeds that count up.
        progress: Whether to tell how far it is.
        settings: Fields of :class:`FinetuneConfig` that the preset has otherwise, such as ``epochs=3``.

    Raises:
        ConfigError: Settings, model and data do not go together, or the folder holds another run.
    """
    require_extra("training", "fine-tuning")
    config = load_finetune_preset(preset) if isinstance(preset, str) else preset
    config = with_fields(config, settings)
    if options is None:
        require_given(model=model, data=data, out=out)
        name = preset if isinstance(preset, str) else "own"
        options = FinetuneOptions(name, os.fspath(model), os.fspath(data), Path(out), seeds, progress)
    if options.seeds < 1:
        raise ConfigError(f"seeds must be a positive integer, got {options.seeds!r}.")
    with stop_requests() as stop, one_run_in(options.out):
        return _finetune(config, options, stop)


def _finetune(config: FinetuneConfig, options: FinetuneOptions, stop: StopRequests) -> FinetuneResult:
    accelerator = build_accelerator()
    task, left_out = without_unreadable(read_task(config, options.data), accelerator)
    run = FinetuneRun(config, options, task, accelerator, stop)
    run.prepare(left_out)
    run.train()
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    report = read_report(options.out)
    interval = Interval(report["value"], report["low"], report["high"])
    return FinetuneResult(report["metric"], interval, report, options.out, run.folder.export, len(left_out))


class FinetuneRun:
    """All trainings of a run."""

    def __init__(
        self,
        config: FinetuneConfig,
        options: FinetuneOptions,
        task: Task,
        accelerator: Accelerator,
        stop: StopRequests,
    ):
        self.options, self.task, self.accelerator, self.stop = options, task, accelerator, stop
        self.folder = RunFolder(options.out)
        has_begun = self.folder.config_file.is_file()
        earlier = read_config(self.folder)["config"].get("precision") if has_begun else None
        self.config = dataclasses.replace(
            config, precision=resolve_precision(config.precision, accelerator.device, earlier)
        )
        self.seeds = [config.seed + index for index in range(options.seeds)]

    def prepare(self, left_out: list[LeftOut]) -> None:
        """Check that the folder is new or holds the same run, and write down its settings."""
        if self.accelerator.is_main_process:
            root = self.folder.root
            if not self.folder.config_file.is_file() and not (root / TRAININGS).is_dir():
                require_own(root, METHOD, (*REPORT_FILES, self.folder.export.name))
            told = {
                "preset": self.options.name,
                "model": str(self.options.model),
                "data": str(self.options.data),
                "seeds": self.seeds,
            }
            write_or_compare_run(
                self.folder,
                self.config,
                self.task.labelled,
                self.options.model,
                told,
                self.accelerator.num_processes,
            )
            write_errors(root, left_out)
            warn_of_skipped(root, left_out)

    def train(self) -> None:
        """Trains what is not finished, and reports."""
        results: dict[tuple[int, str], MemberResult] = {}
        for seed in self.seeds:  # the first one's rounds come first
            for data in self.task.rounds:
                results[seed, data.name] = self._train_member(data, seed)
        if self.accelerator.is_main_process:
            files = [
                (data.name, seed, self._member_folder(data, seed).metrics_file)
                for seed in self.seeds
                for data in self.task.rounds
            ]
            write_metrics(self.folder, files, self.task.metric.name)
            self._report(results)

    def _train_member(self, data: Fold, seed: int) -> MemberResult:
        folder = self._member_folder(data, seed)
        finished = read_result(folder)
        if finished is not None:
            return finished
        plan = self._plan(data, seed)
        config = self.config.scaled_to(plan.steps_per_epoch)
        warn_of_warmup(config.warmup_epochs, config.epochs)
        torch.manual_seed(seed)
        task = self.task
        learner = self._learner(config)
        if config.compile:
            compile_blocks(learner.blocks, self.accelerator.device)
        weights = inverse_class_weights(data.train.targets) if config.class_weights else None
        objective = TaskObjective(task.labelled.is_multi_label, weights, config.loss_over_classes)
        trainer = FinetuneTrainer(config, learner, objective, plan.steps_per_epoch, self.accelerator)
        result = Member(
            folder, trainer, data, plan, task.metric, seed, self.stop, self.options.progress
        ).train()
        if self.accelerator.is_main_process:
            if seed == self.seeds[0] and data is task.rounds[0]:
                with replacing_folder(self.folder.export) as partial:
                    learner.save(partial)
            save_result(folder, result)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        return result

    def _learner(self, config: FinetuneConfig) -> Learner:
        """A model with a fresh head."""
        name, labelled = self.options.model, self.task.labelled
        if config.images is not None:
            return build_image_learner(name, config, labelled.labels)
        return SoundLearner(build_model(name, config, labelled.labels, labelled.is_multi_label), config)

    def _plan(self, data: Fold, seed: int) -> EpochPlan:
        config = self.config
        weights = balancing_weights(data.train.labels, config.balance) if config.weighted_sampling else None
        return EpochPlan(
            list_size=len(data.train),
            global_batch=config.batch_size * config.accumulate_steps * self.accelerator.num_processes,
            seed=seed,
            weights=weights,
            samples_per_epoch=config.samples_per_epoch,
        )

    def _member_folder(self, data: Fold, seed: int) -> RunFolder:
        name = re.sub(r"\W+", "-", data.name)
        return RunFolder(self.folder.root / TRAININGS / f"{name}-seed-{seed}")

    def _report(self, results: dict[tuple[int, str], MemberResult]) -> None:
        scored = [
            ScoredFold(
                data.name,
                data.test,
                torch.stack([results[seed, data.name].test_scores for seed in self.seeds]),
            )
            for data in self.task.rounds
        ]
        evaluation = Evaluation(self.task.labelled, self.task.metric, self.seeds, scored)
        details: dict[str, Any] = {
            "method": METHOD,
            "preset": self.options.name,
            "model": self.options.model,
            "export": str(self.folder.export),
            "settings": self.config.to_dict(),
            "epoch": EPOCH_TOLD[self.config.select],
            "trainings": [
                {"round": name, "seed": seed}
                | {key: value for key, value in vars(result).items() if key != "test_scores"}
                for (seed, name), result in results.items()
            ],
        }
        if self.task.normal is not None:
            details |= self._sensitivity_specificity(scored, self.task.normal)
        with replacing_answer(self.folder.root, REPORT_FILES) as partial:
            write_report(partial, evaluation, details)

    @staticmethod
    def _sensitivity_specificity(scored: list[ScoredFold], normal: int) -> dict[str, float]:
        rates = [
            sensitivity_specificity(scores, one.subset.targets, normal)
            for one in scored
            for scores in one.scores
        ]
        return {
            name: float(np.mean([getattr(rate, name) for rate in rates]))
            for name in ("sensitivity", "specificity")
        }
