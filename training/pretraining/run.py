"""A whole pre-training run: data, model, loop and record put together, resumed where it stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m2d_hub.io import require_extra
from m2d_hub.nn.compiled import compile_blocks
from m2d_hub.nn.encoder import Block
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.manifest import Manifest
from ..data.sampling import EpochPlan, StepSampler, balancing_weights
from ..data.skipped import LeftOutLog, NamedLeftOut
from ..evaluation.labelled import LabelledList, read_labelled
from ..evaluation.linear_folds import evaluate_encoder
from ..runs.devices import build_accelerator
from ..runs.folder import RunFolder, one_run_in
from ..runs.log import RunLog, plot_metrics
from ..runs.loop import Loop, LoopPlan
from ..runs.measuring import beside_training, others_wait
from ..runs.settings import require_given, with_fields
from ..runs.state import gather_weights, require_finite
from ..runs.stopping import StopRequests, stop_requests
from .config import PretrainConfig
from .dataset import Batch, PretrainDataset, build_loader
from .export import build_model, export_run
from .inputs import InputBuilder
from .loop import StepResult, Trainer
from .optimizer import build_optimizer
from .presets import Preset, load_preset
from .pretrainer import Pretrainer, build_pretrainer, encoder_part
from .resolved import write_or_compare_config
from .run_data import ResolvedRun, RunOptions, resolve_run
from .validation import CHECKED_CLIPS, FixedClips, check_tokens, measure_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """Result of a pre-training: where its model is, and what it was trained on."""

    out: Path
    model: Path  # for m2d_hub.load_model
    steps: int  # of the optimizer
    left_out: int  # clips that cannot be read, see errors.csv


def pretrain(
    preset: str | Preset | PretrainConfig,
    options: RunOptions | None = None,
    *,
    data: str | os.PathLike[str] = "",
    out: str | os.PathLike[str] = "",
    noise: str | os.PathLike[str] | None = None,
    valid: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    labelled: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> PretrainResult:
    """Trains until the last epoch, going on from the latest checkpoint in ``out``.

    Clips that cannot be read are replaced by others and named in ``errors.csv``.

    Args:
        preset: Its name, or a configuration of one's own.
        options: All that follows but the settings, in one object.
        data: CSV with a ``file`` column, tar shards, or a folder.
        out: Folder of the run.
        noise: Background noise, as ``data``.
        valid: Clips for the validation loss, as ``data``.
        start: Weights to start from: a model's name or place; None: the preset's own; ``"none"``: random.
        teacher: Frozen offline encoder; None: the preset's own; ``"none"``: without.
        labelled: CSV with file, label and split, for a linear evaluation every few epochs.
        progress: Whether to tell how far it is.
        settings: Fields of :class:`PretrainConfig` that the preset has otherwise, such as ``epochs=3``.

    Raises:
        ConfigError: Settings and data do not go together, or the folder holds another run.
        AudioError: More than half of a list cannot be read.
    """
    require_extra("training", "pre-training")
    chosen = load_preset(preset) if isinstance(preset, str) else preset
    chosen = Preset(chosen) if isinstance(chosen, PretrainConfig) else chosen
    config = with_fields(chosen.config, settings)
    if options is None:
        needs_teacher = config.offline is not None and config.offline.kind == "features"
        options = RunOptions(
            name=chosen.name,
            data=_text(data) or "",
            out=Path(out),
            noise=_text(noise),
            valid=_text(valid),
            start=_text(start) or chosen.start,
            teacher=_text(teacher) or (chosen.teacher if needs_teacher else None),
            labelled=_text(labelled),
            progress=progress,
        )
        require_given(data=data, out=out)
    with stop_requests() as stop, one_run_in(options.out):
        return _pretrain(config, options, stop)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _pretrain(config: PretrainConfig, options: RunOptions, stop: StopRequests) -> PretrainResult:
    accelerator = build_accelerator()
    folder = RunFolder(options.out)
    data = resolve_run(config, options, accelerator)
    config = data.config
    plan = _plan(data, accelerator)
    if accelerator.is_main_process:
        write_or_compare_config(folder, options, plan, data)
    frontend = LogMelFrontend(config.frontend)
    inputs = InputBuilder(config, data.manifest.kind, frontend, config.noise_mean or 0.0, data.teacher)
    pretrainer = _build(data)
    if config.compile:
        blocks = [part for part in pretrainer.modules() if isinstance(part, Block)]
        compile_blocks(blocks, accelerator.device)
    trainer = Trainer(config, pretrainer, build_optimizer(pretrainer, config), inputs, plan, accelerator)
    run = Run(options, folder, data, trainer, stop)
    run.train()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return PretrainResult(options.out, folder.export, trainer.total_steps, len(run.left_out))


def _build(data: ResolvedRun) -> Pretrainer:
    """The model with its first weights: those of the seed, or those that the run starts from."""
    config = data.config
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


def _plan(data: ResolvedRun, accelerator: Accelerator) -> EpochPlan:
    config, entries = data.config, data.manifest.entries
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
    """What a pre-training adds to the loop: its batches, and what is measured between the steps."""

    def __init__(
        self,
        options: RunOptions,
        folder: RunFolder,
        data: ResolvedRun,
        trainer: Trainer,
        stop: StopRequests,
    ):
        self.config, self.options, self.folder = data.config, options, folder
        self.data, self.trainer, self.stop = data, trainer, stop
        self.checked = self._fixed_clips(data.manifest, CHECKED_CLIPS)
        self.valid = self.checked_valid = None
        if data.valid is not None:
            self.valid = self._fixed_clips(data.valid)
            self.checked_valid = self._fixed_clips(data.valid, CHECKED_CLIPS)
        self.labelled = None if options.labelled is None else read_labelled(options.labelled)
        self.accelerator = trainer.accelerator
        self.steps_per_epoch = trainer.plan.steps_per_epoch
        sizes = {read.name: len(read.entries) for read in (data.manifest, data.noise) if read}
        self.left_out = LeftOutLog(folder.root, sizes, self.accelerator.is_main_process)

    def _fixed_clips(self, manifest: Manifest, most: int | None = None) -> FixedClips:
        dataset = PretrainDataset(self.data.config, manifest, None, self.data.classes)
        return FixedClips(dataset, self.trainer, most)

    def train(self) -> None:
        """Trains to the last step and exports the model."""
        config = self.config
        plan = LoopPlan(
            name="",
            total_steps=self.trainer.total_steps,
            accumulate_steps=config.accumulate_steps,
            save_every_steps=config.save_every_steps,
            keep_every_steps=config.keep_every_epochs * self.steps_per_epoch,
            advice="lower base_lr or check the data",
        )
        done = Loop(self.folder, self.trainer, plan, self.stop, self.options.progress).run(self)
        self._finish(done)

    def is_done(self, done: int) -> bool:
        """See Training."""
        return done >= self.trainer.total_steps

    def before_save(self, log: RunLog | None) -> None:
        """See Training."""
        if log is not None:
            log.plot()

    def measure(self, done: int, result: StepResult, log: RunLog | None) -> dict[str, Any]:
        """See Training."""
        metrics: dict[str, Any] = {"epoch": done / self.steps_per_epoch}
        every = self.config.analyse_every_steps
        if every and (done % every == 0 or done in (1, self.trainer.total_steps)):
            metrics |= check_tokens(self.checked)
            if self.checked_valid is not None:
                metrics |= check_tokens(self.checked_valid, "validation_")
        if self.valid is not None and self._is_epoch_end(done, self.config.validate_every_epochs):
            metrics |= measure_loss(self.valid)
        if self.labelled is not None and self._is_epoch_end(done, self.config.linear_eval_every_epochs):
            metrics |= self._linear_eval(self.labelled)
        metrics["skipped"] = self._note_left_out(result.left_out)
        return metrics

    def _note_left_out(self, met: list[NamedLeftOut]) -> int:
        """Names clips that could not be read, all processes' together; returns how many there are so far."""
        for clips in filter(None, (self.checked, self.valid, self.checked_valid)):
            met = [*met, *clips.left_out]
            clips.left_out.clear()
        new = self.left_out.add(self._gathered(met))
        for clip in new if self.accelerator.is_main_process else ():
            logger.warning("left out: %s", clip.error)
        return len(self.left_out)

    def _is_epoch_end(self, done: int, every: int) -> bool:
        return done % (every * self.steps_per_epoch) == 0 or done == self.trainer.total_steps

    def _gathered(self, met: list[NamedLeftOut]) -> list[NamedLeftOut]:
        if self.accelerator.num_processes == 1:
            return met
        from accelerate.utils import gather_object

        return gather_object(met)

    def batches(self, first_step: int) -> Iterable[Batch]:
        """See Training."""
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

    def _linear_eval(self, labelled: LabelledList) -> dict[str, float]:
        """Score of frozen features; the first process computes it."""
        weights = gather_weights(self.trainer.model)
        found: dict[str, float] = {}
        with others_wait(self.accelerator), beside_training("linear_eval"):
            if self.accelerator.is_main_process:
                model = build_model(weights, self.config).to(self.accelerator.device)
                found = {"linear_eval": evaluate_encoder(model, labelled)}
        return found

    def _finish(self, done: int) -> None:
        weights = gather_weights(self.trainer.model)
        require_finite(weights, f"the model after step {done}")
        if self.accelerator.is_main_process:
            export_run(self.folder, weights, self.config, self.options.name)
            plot_metrics(self.folder.metrics_file, self.folder.plots)
            logger.info("Finished after %d steps; the model is in %s", done, self.folder.export)
