"""A pre-training run: data, model, loop and record, resumed from its latest checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2d_hub.io import require_extra
from m2d_hub.nn.encoder import Block, compile_blocks
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.manifest import Manifest
from ..data.sampling import EpochPlan, StepSampler, balancing_weights
from ..data.skipped import SkippedLog
from ..evaluation.labelled import LabelledList, read_labelled
from ..evaluation.linear_folds import evaluate_encoder
from ..runs.folder import (
    RunFolder,
    RunLog,
    clips_digest,
    one_run_in,
    plot_metrics,
    read_config,
    same_or_refuse,
)
from ..runs.loop import Loop, LoopPlan
from ..runs.processes import StopRequests, best_effort, build_accelerator, stop_requests, wait_for_main
from ..runs.settings import require_given, with_fields
from ..runs.state import gather_weights, list_checkpoints, require_finite, step_of
from .analysis import CHECKED_CLIPS, ValidationSet, check_tokens, measure_loss
from .config import PretrainConfig
from .dataset import Batch, PretrainDataset, build_loader
from .presets import Preset, load_preset
from .pretrainer import build_started
from .run_data import ResolvedRun, RunOptions, resolve_run
from .teachers import weights_digest
from .trainer import InputBuilder, Trainer
from .weights import build_model, export_run

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# Fields that change no weights, or no more than another machine does; batch and accumulation may change as
# long as the global batch does not.
MAY_CHANGE = {
    "num_workers",
    "compile",
    "save_every_steps",
    "keep_every_epochs",
    "analyse_every_steps",
    "validate_every_epochs",
    "linear_eval_every_epochs",
    "batch_size",
    "accumulate_steps",
}
LENGTH = {"epochs", "decay_epochs"}  # may change while the rate is at its peak


@dataclass(frozen=True)
class PretrainResult:
    """Result of a pre-training: where its model is, and what it was trained on."""

    out: Path
    model: Path  # for m2d_hub.load_model
    steps: int  # of the optimizer
    left_out: int  # clips that cannot be read, see errors.csv


def pretrain(
    preset: str | Preset | PretrainConfig,
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
    """Train to the last epoch, resuming from the latest checkpoint in ``out``.

    Clips that cannot be read are replaced by others and listed in ``errors.csv``.

    Args:
        preset: Name of a preset, or a configuration.
        data: CSV with a ``file`` column, tar shards, or a folder.
        out: Folder of the run.
        noise: Background noise, as ``data``.
        valid: Clips for the validation loss, as ``data``.
        start: Name or path of weights to start from; None: the preset's; ``"none"``: random.
        teacher: Frozen offline encoder; None: the preset's; ``"none"``: no teacher.
        labelled: CSV with file, label and split, for a linear evaluation every few epochs.
        progress: Show a progress bar, or lines where there is no terminal.
        settings: Fields of :class:`PretrainConfig` to change, such as ``epochs=3``.

    Raises:
        ConfigError: Settings and data do not match, or the folder holds another run.
        AudioError: More than half of a list cannot be read.
    """
    require_extra("training", "pre-training")
    chosen = load_preset(preset) if isinstance(preset, str) else preset
    chosen = Preset(chosen) if isinstance(chosen, PretrainConfig) else chosen
    config = with_fields(chosen.config, settings)
    require_given(data=data, out=out)
    needs_teacher = config.offline is not None and config.offline.kind == "features"
    options = RunOptions(
        name=chosen.name,
        data=os.fspath(data),
        out=Path(out),
        noise=_text(noise),
        valid=_text(valid),
        start=_text(start) or chosen.start,
        teacher=_text(teacher) or (chosen.teacher if needs_teacher else None),
        labelled=_text(labelled),
        progress=progress,
    )
    with stop_requests() as stop, one_run_in(options.out):
        accelerator = build_accelerator()
        return Run(options, resolve_run(config, options, accelerator), accelerator, stop).train()


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


class Run:
    """One pre-training: the batches and measurements that the loop asks for, and the export."""

    def __init__(self, options: RunOptions, data: ResolvedRun, accelerator: Accelerator, stop: StopRequests):
        self.options, self.data, self.accelerator, self.stop = options, data, accelerator, stop
        self.config = config = data.config
        self.folder = RunFolder(options.out)
        plan = _plan(data, accelerator)
        self.steps_per_epoch = plan.steps_per_epoch
        if accelerator.is_main_process:
            self._check_folder(plan)
        frontend = LogMelFrontend(config.frontend)
        inputs = InputBuilder(config, data.manifest.kind, frontend, config.noise_mean or 0.0, data.teacher)
        pretrainer = build_started(config, data.start_weights)
        if config.compile:
            compile_blocks([m for m in pretrainer.modules() if isinstance(m, Block)], accelerator.device)
        self.trainer = Trainer(config, pretrainer, inputs, plan, accelerator)
        self.stepper, self.train_step = self.trainer.stepper, self.trainer.train_step
        self.checked = self._validation_set(data.manifest, CHECKED_CLIPS)
        self.valid = self.checked_valid = None
        if data.valid is not None:
            self.valid = self._validation_set(data.valid)
            self.checked_valid = self._validation_set(data.valid, CHECKED_CLIPS)
        self.labelled = None if options.labelled is None else read_labelled(options.labelled)
        sizes = {read.name: len(read.entries) for read in (data.manifest, data.noise) if read}
        self.skipped = SkippedLog(self.folder.root, sizes, accelerator.is_main_process)

    def _check_folder(self, plan: EpochPlan) -> None:
        """Write the configuration, or refuse a folder of another run.

        Epochs may be more or fewer than before if the steps that are done would have been the same.
        """
        data, options = self.data, self.options
        run: dict[str, Any] = {
            "config": self.config.to_dict(),
            "global_batch": plan.global_batch,
            "steps_per_epoch": plan.steps_per_epoch,
            "clips": len(data.manifest.entries),
            "data_hash": _digest(data.manifest),
            "noise_hash": None if data.noise is None else _digest(data.noise),
        }
        if data.teacher is not None:
            run["teacher_weights"] = weights_digest(data.teacher.model)
        texts = {key: None if value is None else str(value) for key, value in vars(options).items()}
        may_change = MAY_CHANGE | (LENGTH if self._length_is_open() else set())
        same_or_refuse(self.folder, run, {"preset": options.name, "options": texts}, may_change)

    def _length_is_open(self) -> bool:
        """Whether no step that is done depends on the length, neither the old one nor the new one."""
        config = self.config
        tau_grows = config.method != "msm-mae" and config.ema_start != config.ema_end
        if tau_grows or not self.folder.config_file.exists():
            return False
        checkpoints = list_checkpoints(self.folder)
        done = step_of(checkpoints[-1]) / self.steps_per_epoch if checkpoints else 0.0  # epochs
        old = read_config(self.folder)["config"]
        lengths = ((old["epochs"], old.get("decay_epochs")), (config.epochs, config.decay_epochs))
        return all(decay is not None and done <= epochs - decay for epochs, decay in lengths)

    def _validation_set(self, manifest: Manifest, max_clips: int | None = None) -> ValidationSet:
        dataset = PretrainDataset(self.config, manifest, None, self.data.classes)
        return ValidationSet(dataset, self.trainer, max_clips)

    def train(self) -> PretrainResult:
        """Train to the last step and export the model."""
        config, total_steps = self.config, self.trainer.total_steps
        plan = LoopPlan(
            name="",
            total_steps=total_steps,
            accumulate_steps=config.accumulate_steps,
            save_every_steps=config.save_every_steps,
            keep_every_steps=config.keep_every_epochs * self.steps_per_epoch,
            hint="lower base_lr or check the data",
        )
        done = Loop(self.folder, self, plan, self.stop, self.options.progress).run()
        weights = gather_weights(self.trainer.model)
        require_finite(weights, f"the model after step {done}")
        if self.accelerator.is_main_process:
            export_run(self.folder, weights, config, self.options.name)
            plot_metrics(self.folder.metrics_file, self.folder.plots)
            logger.info("Finished after %d steps; the model is in %s", done, self.folder.export)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return PretrainResult(self.options.out, self.folder.export, total_steps, len(self.skipped))

    def is_done(self, done: int) -> bool:
        """See Training."""
        return done >= self.trainer.total_steps

    def before_save(self, log: RunLog | None) -> None:
        """See Training."""
        if log is not None:
            log.plot()

    def measure(self, done: int, log: RunLog | None) -> dict[str, Any]:
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
        metrics["skipped"] = self._log_skipped()
        return metrics

    def _log_skipped(self) -> int:
        """Log clips that could not be read, of all processes; return how many there are so far."""
        from accelerate.utils import gather_object

        skipped = self.trainer.skipped
        new = self.skipped.add(gather_object(skipped) if self.accelerator.num_processes > 1 else skipped)
        skipped.clear()
        for clip in new if self.accelerator.is_main_process else ():
            logger.warning("skipped: %s", clip.error)
        return len(self.skipped)

    def _is_epoch_end(self, done: int, every: int) -> bool:
        return done % (every * self.steps_per_epoch) == 0 or done == self.trainer.total_steps

    def batches(self, first_step: int) -> Iterable[Batch]:
        """See Training."""
        dataset = PretrainDataset(self.config, self.data.manifest, self.data.noise, self.data.classes)
        sampler = StepSampler(
            plan=self.trainer.plan,
            accumulate_steps=self.config.accumulate_steps,
            first_step=first_step,
            total_steps=self.trainer.total_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return build_loader(dataset, sampler, self.config.num_workers)

    def _linear_eval(self, labelled: LabelledList) -> dict[str, float]:
        """Score of frozen features, which the first process computes."""
        weights = gather_weights(self.trainer.model)
        found: dict[str, float] = {}
        with wait_for_main(self.accelerator), best_effort("linear_eval"):
            if self.accelerator.is_main_process:
                model = build_model(weights, self.config).to(self.accelerator.device)
                found = {"linear_eval": evaluate_encoder(model, labelled)}
        return found


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
            "%s has %d clips, fewer than one batch of %d: each is used several times per step.",
            data.manifest.name,
            len(entries),
            plan.global_batch,
        )
    return plan


def _digest(manifest: Manifest) -> str:
    entries = manifest.entries
    return clips_digest(
        [entry.path for entry in entries],
        [entry.name for entry in entries],
        [entry.label for entry in entries],
        [entry.caption for entry in entries],
        [os.path.basename(entry.features_path) for entry in entries],
    )
