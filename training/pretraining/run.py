"""A whole pre-training run: data, model, loop and record put together, resumed where it stopped."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from m2d_hub.errors import M2DError
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.manifest import Manifest
from ..data.sampling import EpochPlan, SampleKey, StepSampler, balancing_weights
from ..evaluation.labelled import LabelledList, read_labelled
from ..evaluation.probe import evaluate_encoder
from ..runs.devices import build_accelerator
from ..runs.folder import RunFolder
from ..runs.log import RunLog
from ..runs.state import (
    gather_state,
    gather_weights,
    list_checkpoints,
    read_state,
    restore_state,
    write_state,
)
from .config import PretrainConfig
from .dataset import Batch, PretrainDataset, build_loader, stack_samples
from .export import build_model, export_run
from .inputs import InputBuilder
from .loop import StepResult, Trainer
from .optimizer import build_optimizer
from .pretrainer import Pretrainer, build_pretrainer, encoder_part
from .resolved import write_or_compare_config
from .run_data import RunData, RunOptions, load_signal_teacher, read_data, with_offline_sizes

logger = logging.getLogger(__name__)

VALIDATION_EPOCH = 1 << 30  # its random numbers are those of no training epoch


def pretrain(config: PretrainConfig, options: RunOptions) -> Path:
    """Trains until the last epoch, going on from the latest checkpoint in ``options.out``.

    Returns:
        The folder that ``m2d_hub.load_model`` takes.
    """
    accelerator = build_accelerator()
    folder = RunFolder(options.out)
    data = read_data(config, options)
    teacher = load_signal_teacher(data, options, accelerator.device)
    config = with_offline_sizes(data, teacher)
    plan = _plan(config, data, accelerator)
    if accelerator.is_main_process:
        write_or_compare_config(folder, config, options, plan, len(data.manifest.entries))
    frontend = LogMelFrontend(config.frontend)
    inputs = InputBuilder(config, data.manifest.kind, frontend, config.noise_mean or 0.0, teacher)
    pretrainer = _build(config, data)
    trainer = Trainer(config, pretrainer, build_optimizer(pretrainer, config), inputs, plan, accelerator)
    first_step = _resume(folder, trainer)
    Run(config, options, folder, data, trainer).train(first_step)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder.export


def _build(config: PretrainConfig, data: RunData) -> Pretrainer:
    """The model with its first weights: those of the seed, or those that the run starts from."""
    torch.manual_seed(config.seed)
    pretrainer = build_pretrainer(config)
    weights = data.start_weights
    if weights is not None:
        if config.start_parts == "encoder":
            weights = encoder_part(weights)
        pretrainer.load_published(weights)
        pretrainer.set_statistics(config.frontend.mean, config.frontend.std)
    has_target = weights is not None and "target_norm.weight" in weights
    if config.target_start == "encoder" and not has_target:
        pretrainer.update_target_encoder(0.0)
    return pretrainer


def _resume(folder: RunFolder, trainer: Trainer) -> int:
    """Goes on from the latest checkpoint; returns the optimizer steps that are done."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return 0
    state = read_state(checkpoints[-1])
    restore_state(state, trainer.model, trainer.optimizer)
    logger.info("Resumed from step %d", state.step)
    return state.step


def _plan(config: PretrainConfig, data: RunData, accelerator) -> EpochPlan:
    entries = data.manifest.entries
    plan = EpochPlan(
        list_size=len(entries),
        global_batch=config.batch_size * config.accumulate_steps * accelerator.num_processes,
        seed=config.seed,
        min_list_size=config.min_list_size,
        weights=balancing_weights([entry.labels for entry in entries]) if config.weighted_sampling else None,
        samples_per_epoch=config.samples_per_epoch,
    )
    if plan.epoch_size > max(len(entries), config.min_list_size):
        logger.warning(
            "%s has %d clips, fewer than one batch of %d: each is used several times a step.",
            data.manifest.name,
            len(entries),
            plan.global_batch,
        )
    return plan


class Run:
    """The loop over all steps, with what is done between them."""

    def __init__(
        self, config: PretrainConfig, options: RunOptions, folder: RunFolder, data: RunData, trainer: Trainer
    ):
        self.config, self.options, self.folder = config, options, folder
        self.data, self.trainer = data, trainer
        self.labelled = None if options.labelled is None else read_labelled(options.labelled)
        self.accelerator = trainer.accelerator
        self.steps_per_epoch = trainer.plan.steps_per_epoch
        self.record: RunLog | None = None

    def train(self, first_step: int) -> None:
        """Trains from a step to the last one and exports the model."""
        from tqdm import tqdm

        total = self.trainer.total_steps
        is_main = self.accelerator.is_main_process
        self.record = RunLog(self.folder, first_step) if is_main else None
        batches = iter(self._loader(first_step))
        bar = tqdm(
            range(first_step, total),
            desc="pre-training",
            unit="step",
            initial=first_step,
            total=total,
            disable=not (is_main and self.options.progress),
        )
        for step in bar:
            started = time.perf_counter()
            micro_batches = list(itertools.islice(batches, self.config.accumulate_steps))
            waited_s = time.perf_counter() - started
            result = self.trainer.train_step(micro_batches, step)
            self._note(step + 1, result, waited_s)
            if self._saves(step + 1):
                self._save(step + 1)
        self._finish(total)

    def _note(self, done: int, result: StepResult, waited_s: float) -> None:
        """Records one step and what is measured after it."""
        if not math.isfinite(result.loss):
            raise M2DError(
                f"the loss is {result.loss} at step {done}: lower base_lr or check the data. "
                "The last checkpoint is from before."
            )
        metrics = {"epoch": done / self.steps_per_epoch, **result.metrics(), "data_seconds": waited_s}
        every = self.config.analyse_every_steps
        if self.record is not None and every and (done % every == 0 or done in (1, self.trainer.total_steps)):
            metrics |= result.analysis()
        if self.data.valid is not None and self._is_epoch_end(done, self.config.validate_every_epochs):
            metrics["validation_loss"] = self.trainer.validate(self._validation_batches(self.data.valid))
        if self.labelled is not None and self._is_epoch_end(done, self.config.linear_eval_every_epochs):
            metrics["linear_eval"] = self._linear_eval(self.labelled)
        skipped = self._gathered(result.skipped)
        if self.record is not None:
            for reason in skipped:
                logger.warning("left out: %s", reason)
            metrics["skipped"] = self.record.skip(skipped)
            self.record.write(done, metrics)

    def _is_epoch_end(self, done: int, every: int) -> bool:
        return done % (every * self.steps_per_epoch) == 0 or done == self.trainer.total_steps

    def _saves(self, done: int) -> bool:
        kept_every = self.config.keep_every_epochs * self.steps_per_epoch
        at_multiple = done % self.config.save_every_steps == 0 or done % kept_every == 0
        return at_multiple or done == self.trainer.total_steps

    def _gathered(self, reasons: list[str]) -> list[str]:
        if self.accelerator.num_processes == 1:
            return reasons
        from accelerate.utils import gather_object

        return gather_object(reasons)

    def _loader(self, first_step: int) -> Iterable[Batch]:
        dataset = PretrainDataset(self.config, self.data.manifest, self.data.noise, self.data.classes)
        sampler = StepSampler(
            plan=self.trainer.plan,
            batch_size=self.config.batch_size,
            accumulate_steps=self.config.accumulate_steps,
            first_step=first_step,
            total_steps=self.trainer.total_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return build_loader(dataset, sampler, self.config.num_workers)

    def _validation_batches(self, valid: Manifest) -> Iterator[tuple[Batch, int]]:
        """Batches of this process, each with the clips that count; all processes get as many batches."""
        dataset = PretrainDataset(self.config, valid, None, self.data.classes)
        size = self.config.batch_size
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        starts = range(0, len(dataset), size)
        for first in range(0, len(starts), processes):
            start = starts[min(first + rank, len(starts) - 1)]
            places = range(start, min(start + size, len(dataset)))
            batch = stack_samples([dataset[SampleKey(VALIDATION_EPOCH, place, place)] for place in places])
            yield batch, len(places) if first + rank < len(starts) else 0

    def _linear_eval(self, labelled: LabelledList) -> float:
        """Score of frozen features; the first process computes it."""
        weights = gather_weights(self.trainer.model)
        if not self.accelerator.is_main_process:
            return math.nan
        model = build_model(weights, self.config).to(self.accelerator.device)
        return evaluate_encoder(model, labelled)

    def _save(self, done: int) -> None:
        state = gather_state(done, self.trainer.model, self.trainer.optimizer)
        if self.record is not None:
            write_state(self.folder, state, self.config.keep_every_epochs * self.steps_per_epoch)
            self.record.plot()

    def _finish(self, total: int) -> None:
        weights = gather_weights(self.trainer.model)
        if self.record is not None:
            export_run(self.folder, weights, self.config, self.options.name)
            self.record.plot(now=True)
            self.record.close()
            logger.info("Finished after %d steps; the model is in %s", total, self.folder.export)
