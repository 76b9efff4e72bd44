"""A whole fine-tuning run: every fold of the data with every seed, resumed where it stopped, and its report.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import json_text, reading, replacing, replacing_folder, require_extra
from m2d_hub.nn.encoder import compile_blocks
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import resolve

from ..data.sampling import EpochPlan, balancing_weights
from ..data.skipped import SkippedClip, SkippedLog, write_errors
from ..evaluation.charts import draw_curves
from ..evaluation.labelled import Fold
from ..evaluation.metrics import Interval, sensitivity_specificity
from ..evaluation.report import (
    REPORT_FILE,
    REPORT_FILES,
    Evaluation,
    ScoredFold,
    read_report,
    replacing_answer,
    require_own,
    write_report,
)
from ..evaluation.unreadable import (
    find_unreadable,
    read_picture,
    read_sound,
    skip_unreadable,
    warn_of_skipped,
)
from ..runs.folder import (
    RunFolder,
    clips_digest,
    one_run_in,
    read_config,
    read_metrics,
    same_or_refuse,
)
from ..runs.loop import warn_of_warmup
from ..runs.processes import (
    StopRequests,
    broadcast_from_main,
    build_accelerator,
    resolve_precision,
    stop_requests,
)
from ..runs.settings import require_given, with_fields
from .config import FinetuneConfig
from .fold import FoldResult, FoldRun
from .images import ImageClassifier, build_image_classifier
from .model import AudioClassifier, build_audio_classifier
from .presets import load_finetune_preset
from .task import Task, read_task
from .trainer import FinetuneTrainer, TaskObjective, inverse_class_weights

logger = logging.getLogger(__name__)

METHOD = "fine-tuning"
TRAININGS = "trainings"  # folder with a folder per fold and seed
READABLE_FILE = "readable.txt"  # clips that were read before the training
CURVES_FILE = "learning_curve.png"
MAY_CHANGE = {"num_workers", "compile", "save_every_steps"}
EPOCHS = {
    "valid": "best on the validation clips",
    "last": "the last",
    "test": "best on test, as in the paper where a task has no validation split",
}


@dataclass(frozen=True)
class FinetuneResult:
    """Result of a fine-tuning: the figure on the test clips, its report and its model."""

    metric: str  # accuracy, mAP, or ICBHI's score
    interval: Interval
    report: dict[str, Any]  # contents of report.json
    out: Path
    model: Path  # for m2d_hub.load_model; image models for timm.create_model("local-dir:…", pretrained=True)
    left_out: int  # unreadable clips, see errors.csv


def finetune(
    preset: str | FinetuneConfig,
    *,
    model: str | os.PathLike[str] = "",
    data: str | os.PathLike[str] = "",
    out: str | os.PathLike[str] = "",
    seeds: int = 1,
    progress: bool = True,
    **settings: Any,
) -> FinetuneResult:
    """Train and test every fold with every seed, resuming from ``out``.

    Each training keeps its best epoch on the validation clips. ``export/`` is the model of the first fold and
    the first seed; ``report.json`` covers all of them.

    Args:
        preset: Name of a preset, or a configuration.
        model: As for :func:`m2d_hub.load_model`.
        data: CSV with file, label and split, or a folder ``train/CLASS/``, ``valid/CLASS/`` ...
        out: Output folder.
        seeds: Number of trainings of each fold, with increasing seeds.
        progress: Show a progress bar.
        settings: Fields of :class:`FinetuneConfig` that differ from the preset, such as ``epochs=3``.

    Raises:
        ConfigError: Settings, model and data do not match, or the folder contains another run.
    """
    require_extra("training", "fine-tuning")
    config = load_finetune_preset(preset) if isinstance(preset, str) else preset
    config = with_fields(config, settings)
    require_given(model=model, data=data, out=out)
    if seeds < 1:
        raise ConfigError(f"seeds must be a positive integer, got {seeds!r}.")
    name = preset if isinstance(preset, str) else "own"
    with stop_requests() as stop, one_run_in(Path(out)):
        run = FinetuneRun(config, name, os.fspath(model), os.fspath(data), Path(out), seeds)
        report = run.run(stop, progress)
    interval = Interval(report["value"], report["low"], report["high"])
    return FinetuneResult(report["metric"], interval, report, Path(out), run.folder.export, len(run.skipped))


class FinetuneRun:
    """All trainings of a run."""

    def __init__(self, config: FinetuneConfig, preset: str, model: str, data: str, out: Path, seeds: int):
        self.preset, self.model, self.data = preset, model, data
        self.folder, self.accelerator = RunFolder(out), build_accelerator()
        self.earlier = read_config(self.folder) if self.folder.config_file.is_file() else None
        precision = None if self.earlier is None else self.earlier["config"].get("precision")
        precision = resolve_precision(config.precision, self.accelerator.device, precision)
        self.config = dataclasses.replace(config, precision=precision)
        self.seeds = [config.seed + index for index in range(seeds)]
        self.task, self.skipped = self._read_task()

    def run(self, stop: StopRequests, progress: bool) -> dict[str, Any]:
        """Train what is not finished and return the report."""
        if self.accelerator.is_main_process:
            self._write_or_compare()
        skipped = SkippedLog(self.folder.root, {}, self.accelerator.is_main_process)
        results = {  # the folds of the first seed are trained first
            (seed, fold.name): self._train_fold(fold, seed, skipped, stop, progress)
            for seed in self.seeds
            for fold in self.task.folds
        }
        if self.accelerator.is_main_process and not self._is_reported():
            self._write_metrics()
            self._report(results)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return read_report(self.folder.root)

    def _read_task(self) -> tuple[Task, list[SkippedClip]]:
        """Read the list without unreadable clips; they are found when the run starts, and then remembered."""
        task, root = read_task(self.config, self.data), self.folder.root
        if self.earlier is not None:
            with reading(self.folder.config_file, "a run's configuration", "Delete it.", CheckpointError):
                skipped = [SkippedClip(**clip) for clip in self.earlier.get("unreadable", [])]
        else:
            if not (root / TRAININGS).is_dir():
                require_own(root, METHOD, (*REPORT_FILES, self.folder.export.name))
            read = read_picture if self.config.images is not None else read_sound
            logger.info("Reading %d clips to find unreadable ones.", len(task.labelled.clips))
            memory = root / READABLE_FILE
            reasons = broadcast_from_main(
                self.accelerator, lambda: find_unreadable(task.labelled, read, memory=memory, progress=True)
            )
            _, skipped = skip_unreadable(task.labelled, reasons)
        return (task.without({clip.row for clip in skipped}) if skipped else task), skipped

    def _write_or_compare(self) -> None:
        """Write the configuration and the list of a new run, or check that a resumed one has the same.

        Raises:
            ConfigError: The folder contains another run.
        """
        labelled, config = self.task.labelled, self.config
        head = {
            "preset": self.preset,
            "model": self.model,
            "data": self.data,
            "seeds": self.seeds,
            "unreadable": [dataclasses.asdict(clip) for clip in self.skipped],
        }
        run = {
            "config": config.to_dict(),
            "model_sha256": sha256_of_model(resolve(self.model)),
            "global_batch": config.batch_size * config.accumulate_steps * self.accelerator.num_processes,
            "clips": len(labelled.clips),
            "labels": list(labelled.labels),
            "data_hash": clips_digest(
                [clip.file for clip in labelled.clips],
                [";".join(clip.labels) for clip in labelled.clips],
                [clip.split for clip in labelled.clips],
            ),
        }
        same_or_refuse(self.folder, run, head, MAY_CHANGE)
        if self.earlier is None:
            write_errors(self.folder.root, self.skipped)
            warn_of_skipped(self.folder.root, self.skipped)

    def _train_fold(
        self, fold: Fold, seed: int, skipped: SkippedLog, stop: StopRequests, progress: bool
    ) -> FoldResult:
        folder = self._fold_folder(fold, seed)
        finished = FoldResult.read(folder)
        if finished is not None:
            return finished
        plan = self._plan(fold, seed)
        config = self.config.scaled_to(plan.steps_per_epoch)
        warn_of_warmup(config.warmup_epochs, config.epochs)
        classifier = self._classifier(config, seed)
        if config.compile:
            compile_blocks(classifier.blocks, self.accelerator.device)
        weights = inverse_class_weights(fold.train.targets) if config.class_weights else None
        objective = TaskObjective(self.task.labelled.is_multi_label, weights, config.loss_over_classes)
        trainer = FinetuneTrainer(config, classifier, objective, plan.steps_per_epoch, self.accelerator)
        training = FoldRun(folder, trainer, fold, plan, self.task.metric, seed, skipped)
        result = training.train(stop, progress)
        if self.accelerator.is_main_process:
            if seed == self.seeds[0] and fold is self.task.folds[0]:
                with replacing_folder(self.folder.export) as partial:
                    classifier.save(partial)
            result.write(folder)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        return result

    def _classifier(self, config: FinetuneConfig, seed: int) -> AudioClassifier | ImageClassifier:
        labelled = self.task.labelled
        if config.images is not None:
            return build_image_classifier(self.model, config, labelled.labels, seed)
        return build_audio_classifier(self.model, config, labelled.labels, labelled.is_multi_label, seed)

    def _plan(self, fold: Fold, seed: int) -> EpochPlan:
        config = self.config
        weights = balancing_weights(fold.train.labels, config.balance) if config.weighted_sampling else None
        parts = config.accumulate_steps * self.accelerator.num_processes
        return EpochPlan(
            list_size=len(fold.train),
            global_batch=config.batch_size * parts,
            parts=None if config.images else parts,
            seed=seed,
            weights=weights,
            samples_per_epoch=config.samples_per_epoch,
        )

    def _fold_folder(self, fold: Fold, seed: int) -> RunFolder:
        name = re.sub(r"\W+", "-", fold.name)
        return RunFolder(self.folder.root / TRAININGS / f"{name}-seed-{seed}")

    def _is_reported(self) -> bool:
        """Return whether the report of exactly these seeds exists."""
        if not (self.folder.root / REPORT_FILE).is_file():
            return False
        return list(read_report(self.folder.root)["per_seed"]) == [str(seed) for seed in self.seeds]

    def _write_metrics(self) -> None:
        """Write the metrics of all trainings to one file, and draw their losses and scores."""
        losses, scores = dict[str, list[float]](), dict[str, list[float]]()
        with replacing(self.folder.metrics_file) as partial, partial.open("w", encoding="utf-8") as lines:
            for seed in self.seeds:
                for fold in self.task.folds:
                    steps = read_metrics(self._fold_folder(fold, seed).metrics_file)
                    for values in steps:
                        lines.write(json_text({"round": fold.name, "seed": seed, **values}) + "\n")
                    name = f"{fold.name}, seed {seed}" if len(self.task.folds) > 1 else f"seed {seed}"
                    losses[f"{name}, train"] = _by_epoch(steps, "loss")
                    losses[f"{name}, valid"] = _by_epoch(steps, "validation_loss")
                    scores[name] = _by_epoch(steps, "validation_score")
        panels = {"loss": losses, f"{self.task.metric.name} on valid": scores}
        draw_curves(self.folder.root / CURVES_FILE, panels)

    def _report(self, results: dict[tuple[int, str], FoldResult]) -> None:
        scored = [
            ScoredFold(
                fold.name,
                fold.test,
                torch.stack([results[seed, fold.name].test_scores for seed in self.seeds]),
            )
            for fold in self.task.folds
        ]
        evaluation = Evaluation(self.task.labelled, self.task.metric, self.seeds, scored)
        details: dict[str, Any] = {
            "method": METHOD,
            "preset": self.preset,
            "model": self.model,
            "export": str(self.folder.export),
            "settings": self.config.to_dict(),
            "epoch": EPOCHS[self.config.select],
            "trainings": [
                {"round": name, "seed": seed}
                | {key: value for key, value in vars(result).items() if key != "test_scores"}
                for (seed, name), result in results.items()
            ],
        }
        if self.task.normal is not None:
            details |= _sensitivity_specificity(scored, self.task.normal)
        with replacing_answer(self.folder.root, REPORT_FILES) as partial:
            write_report(partial, evaluation, details)


def _sensitivity_specificity(folds: Sequence[ScoredFold], normal: int) -> dict[str, float]:
    """Return the mean rates over folds and seeds."""
    rates = [
        sensitivity_specificity(scores, fold.subset.targets, normal)
        for fold in folds
        for scores in fold.scores
    ]
    return dict(zip(("sensitivity", "specificity"), np.mean(rates, axis=0).tolist(), strict=True))


def _by_epoch(steps: list[dict[str, Any]], name: str) -> list[float]:
    """Return the mean of a metric over the steps of each epoch; NaN for epochs without it."""
    values: dict[int, list[float]] = {}
    for step in steps:
        epoch = values.setdefault(math.ceil(step["epoch"] - 1e-9), [])
        epoch += [step[name]] if step.get(name) is not None else []
    return [float(np.mean(values[epoch])) if values[epoch] else math.nan for epoch in sorted(values)]
