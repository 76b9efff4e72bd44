"""Schedules, optimizer steps, and the loop of every training, which measures, logs, saves and resumes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from m2d_hub.errors import CheckpointError, M2DError

from .folder import RunFolder, RunLog, progress_bar
from .processes import Stopped, StopRequests
from .state import (
    NotFiniteError,
    checkpoint_path,
    gather_state,
    list_checkpoints,
    restore_state,
    step_of,
    write_state,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .processes import Precision

logger = logging.getLogger(__name__)

MIN_SCALE = 1.0  # of the loss: gradients that overflow even so do not because of float16
MAX_SKIPPED_IN_A_ROW = 2  # steps that are not finite; one more ends the training


def learning_rate(
    epoch: float,
    *,
    peak_lr: float,
    min_lr: float,
    warmup_epochs: float,
    epochs: float,
    decay_epochs: float | None = None,
) -> float:
    """Linear warm-up, then half a cosine cycle (paper, section IV-A: as in masked autoencoders).

    With ``decay_epochs`` the rate stays at its peak until the last epochs, and only they are a cosine: what
    comes before them does not depend on the length of the training (arXiv:2405.18392).

    Args:
        epoch: Progress in epochs, fractional: it is evaluated for every optimizer step.
        peak_lr: Rate at the end of the warm-up: base rate · effective batch / 256.
        min_lr: Rate at the end of the training.
        warmup_epochs: Epochs of linear growth from zero.
        epochs: Epochs of the whole training.
        decay_epochs: Epochs of the cosine at the end; None, or too many: all after the warm-up.
    """
    if epoch < warmup_epochs:
        return peak_lr * epoch / warmup_epochs
    start = warmup_epochs if decay_epochs is None else max(warmup_epochs, epochs - decay_epochs)
    progress = min(1.0, max(0.0, epoch - start) / max(epochs - start, 1e-12))
    return min_lr + (peak_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(step: int, total_steps: int, start: float, end: float) -> float:
    """Decay rate τ of the target encoder, linear in the optimizer step (paper, section IV-A).

    Args:
        step: Optimizer step, from 0; the last one, ``total_steps`` − 1, gets ``end``.
        total_steps: Optimizer steps of the whole training.
        start: τ at step 0.
        end: τ at the last step.
    """
    return start + (end - start) * step / max(total_steps - 1, 1)


def warn_of_warmup(warmup_epochs: float, epochs: int) -> None:
    """Warn of a warm-up that is as long as the training, or longer."""
    if warmup_epochs >= epochs:
        logger.warning(
            "warmup_epochs is %g, but the training has %d epochs: the rate never reaches its peak.",
            warmup_epochs,
            epochs,
        )


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    losses: list[float]  # means over batches and processes; the first one is what was minimised
    grad_norm: float  # of all gradients together, before clipping
    is_taken: bool  # else loss or gradients were not finite, and nothing was changed
    is_overflow: bool  # gradients were too large for float16: their scale is lowered
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)  # further values for the log

    @property
    def loss(self) -> float:
        """What was minimised."""
        return self.losses[0]


class Stepper:
    """Takes optimizer steps; one whose loss or gradients are not finite changes nothing.

    In float16 the loss is scaled, so that small gradients do not vanish; a step whose gradients overflow
    lowers the scale instead.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        precision: Precision,
    ):
        """Hold what a step changes: a model as prepared for the devices, and its plain optimizer."""
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.clip_norm = clip_norm

    def step(self, batches: Sequence[Any], losses_of: Callable[[Any], Tensor]) -> Step:
        """Take one step over the mean loss of some batches.

        Args:
            batches: Of this process, one per forward pass.
            losses_of: Computes the losses (K,) of a batch, of which the first one is minimised.
        """
        started = time.perf_counter()
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # running statistics
        rows = []
        for index, batch in enumerate(batches):
            is_last = index + 1 == len(batches)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = losses_of(batch)
                self.accelerator.backward(self.scaler.scale(losses[0] / len(batches)))
            rows.append(losses.detach())
        means = self.accelerator.reduce(torch.stack(rows).mean(dim=0), reduction="mean").tolist()
        norm, is_taken, is_overflow = self._update(means[0], buffers)
        return Step(means, norm, is_taken, is_overflow, time.perf_counter() - started)

    def _update(self, loss: float, buffers: list[Tensor]) -> tuple[float, bool, bool]:
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm))
        is_taken = math.isfinite(loss) and math.isfinite(norm)
        if is_taken:
            self.scaler.step(self.optimizer)
        else:
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm, is_taken, not is_taken and math.isfinite(loss) and scale > MIN_SCALE


@dataclass(frozen=True)
class LoopPlan:
    """How many steps there are, and when a checkpoint is saved."""

    name: str  # of this training among the run's others; empty: it is the only one
    total_steps: int
    accumulate_steps: int  # batches of one step
    save_every_steps: int
    keep_every_steps: int  # checkpoints at multiples of it are kept
    hint: str  # what to do about losses that are not finite


class Training(Protocol):
    """What one kind of training adds to the loop; all processes call each of these together."""

    stepper: Stepper

    def train_step(self, batches: list[Any], step: int) -> Step:
        """Take one optimizer step, counted from 0."""

    def batches(self, first_step: int) -> Iterable[Any]:
        """Yield batches of this process from a step on."""

    def measure(self, done: int, log: RunLog | None) -> dict[str, Any]:
        """Return further values for the log after a step; only the first process has a log."""

    def is_done(self, done: int) -> bool:
        """Return whether no step follows."""

    def before_save(self, log: RunLog | None) -> None:
        """Write what must be on disk before the checkpoint."""


class Loop:
    """Steps of one training from its latest checkpoint on."""

    def __init__(
        self, folder: RunFolder, training: Training, plan: LoopPlan, stop: StopRequests, progress: bool
    ):
        self.folder, self.training, self.plan, self.stop = folder, training, plan, stop
        self.stepper = training.stepper
        self.accelerator = self.stepper.accelerator
        self.is_first_process = self.accelerator.is_main_process
        self.is_shown = progress and self.is_first_process
        self._skipped_in_a_row = 0

    def run(self) -> int:
        """Train to the end; return the steps that are done.

        Raises:
            M2DError: Several steps in a row were not finite.
            Stopped: A signal asked for it; what is done is saved.
        """
        step = self._resume()
        log = RunLog(self.folder, step) if self.is_first_process else None
        batches: Any = iter(self.training.batches(step))
        name = self.plan.name or "training"
        try:
            with (
                progress_bar(name, step, self.plan.total_steps, "step", self.is_shown) as bar,
                self.stop.held(),
            ):
                while not self.training.is_done(step):
                    loss = self._step(step, batches, log)
                    step += 1
                    bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                    bar.update()
        finally:
            batches.close()  # ends the workers
            if log is not None:
                log.close()
        return step

    def _step(self, step: int, batches: Iterator[Any], log: RunLog | None) -> float:
        """Take a step, then check, measure, log and save; return its loss."""
        started = time.perf_counter()
        micro_batches = list(itertools.islice(batches, self.plan.accumulate_steps))
        waited_s = time.perf_counter() - started
        result = self.training.train_step(micro_batches, step)
        done = step + 1
        try:
            self._check(done, result)
            metrics = {"loss": result.loss, "grad_norm": result.grad_norm, "seconds": result.seconds}
            metrics |= {**result.metrics, "data_seconds": waited_s, **self.training.measure(done, log)}
            if log is not None:
                log.write(done, metrics, is_skipped=not result.is_taken)
            signal_number = self.stop.agreed(self.accelerator)
            if self._saves(done) or (signal_number and not self._skipped_in_a_row):
                self._save(done, log)
        except NotFiniteError as error:
            raise M2DError(f"{error} {self._hint(done)}") from error
        if signal_number:
            self.accelerator.end_training()
            raise Stopped(
                signal_number, f" after step {done}{'' if self._skipped_in_a_row else ', which is saved'}"
            )
        return result.loss

    def _resume(self) -> int:
        """Resume from the latest checkpoint; return the steps that are done."""
        checkpoints = list_checkpoints(self.folder)
        if not checkpoints:
            return 0
        stepper, path = self.stepper, checkpoints[-1]
        if step_of(path) > self.plan.total_steps:
            raise CheckpointError(f"{path} is after the last step, {self.plan.total_steps}: delete it.")
        step = restore_state(path, stepper.model, stepper.optimizer, stepper.scaler)
        logger.info("Resumed%s from step %d", f" {self.plan.name}," if self.plan.name else "", step)
        return step

    def _check(self, done: int, result: Step) -> None:
        """Report a skipped step; several in a row end the training."""
        if result.is_taken or result.is_overflow:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        has_loss = math.isfinite(result.loss)
        what, figure = ("the gradient norm", result.grad_norm) if has_loss else ("the loss", result.loss)
        if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise NotFiniteError(
                f"{what} is {figure} at step {done}, the last of {self._skipped_in_a_row} in a row."
            )
        logger.warning("%s is %s at step %d: the step is skipped.", what, figure, done)

    def _hint(self, done: int) -> str:
        """What to do. Sets a checkpoint aside whose weights gave no finite step."""
        hint = f"To resume, {self.plan.hint}."
        latest = checkpoint_path(self.folder, done - self._skipped_in_a_row)
        if self.is_first_process and latest.exists():
            aside = latest.rename(latest.with_name(f"{latest.name}.suspect"))
            hint += f" No step after {latest.name} was finite: it is set aside as {aside.name}."
        return hint

    def _saves(self, done: int) -> bool:
        """Never after skipped steps: the checkpoint before them must stay."""
        plan = self.plan
        at_multiple = done % plan.save_every_steps == 0 or done % plan.keep_every_steps == 0
        return done == plan.total_steps or (at_multiple and not self._skipped_in_a_row)

    def _save(self, done: int, log: RunLog | None) -> None:
        stepper = self.stepper
        state = gather_state(done, stepper.model, stepper.optimizer, stepper.scaler)
        self.training.before_save(log)
        if self.is_first_process:
            write_state(self.folder, state, self.plan.keep_every_steps)
