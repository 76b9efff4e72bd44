"""The outer loop of every training: steps, what is measured and saved after them, and how it ends."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from m2d_hub.errors import M2DError

from .folder import RunFolder
from .log import RunLog
from .progress import Progress
from .state import (
    NotFiniteError,
    gather_state,
    list_checkpoints,
    read_state,
    require_finite,
    restore_state,
    set_aside,
    step_of,
    write_state,
)
from .stopping import Stopped, StopRequests
from .updates import Updater

logger = logging.getLogger(__name__)

MOST_LEFT_OUT_IN_A_ROW = 2  # steps that are not finite; one more ends the training
MOST_LEFT_OUT_AT_END = 1


@dataclass(frozen=True)
class LoopPlan:
    """How many steps there are, and what is saved when."""

    name: str  # of this training among the run's others; empty: it is the only one
    total_steps: int
    accumulate_steps: int  # batches of one step
    save_every_steps: int
    keep_every_steps: int  # checkpoints at multiples of it are kept for good
    advice: str  # what to do about losses that are not finite


class StepResult(Protocol):
    """What one optimizer step tells the loop."""

    @property
    def loss(self) -> float:
        """Mean over batches and processes."""
        ...

    @property
    def grad_norm(self) -> float:
        """Of all gradients together."""
        ...

    @property
    def is_taken(self) -> bool:
        """Whether it changed the weights: loss and gradients were finite."""
        ...

    @property
    def is_overflow(self) -> bool:
        """Whether it did not, as gradients were too large for float16 at their scale, which is lowered."""
        ...

    def metrics(self) -> dict[str, Any]:
        """Values for the record."""
        ...


class Trainer(Protocol):
    """Model, optimizer and devices."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    updater: Updater
    accelerator: Any

    def train_step(self, batches: list[Any], step: int) -> StepResult:
        """One optimizer step, counted from 0."""
        ...


class Training(Protocol):
    """What one kind of training adds to the loop; all processes call each of these together."""

    def batches(self, first_step: int) -> Iterable[Any]:
        """Batches of this process from a step on."""
        ...

    def measure(self, done: int, result: Any, log: RunLog | None) -> dict[str, Any]:
        """What is found out after a step, for the record; only the first process has a log."""
        ...

    def is_done(self, done: int) -> bool:
        """Whether no step follows."""
        ...

    def before_save(self, log: RunLog | None) -> None:
        """What is to be on disk before the checkpoint is."""
        ...


class Loop:
    """Steps of one training from its latest checkpoint on."""

    def __init__(
        self, folder: RunFolder, trainer: Trainer, plan: LoopPlan, stop: StopRequests, progress: bool
    ):
        self.folder, self.trainer, self.plan, self.stop = folder, trainer, plan, stop
        self.is_first_process = trainer.accelerator.is_main_process
        self.is_shown = progress and self.is_first_process
        self._left_out_in_a_row = 0
        self._loss = math.nan

    def run(self, training: Training) -> int:
        """Trains to the end; returns the steps that are done then.

        Raises:
            M2DError: Several steps in a row were not finite.
            Stopped: A signal asked for it; what is done is saved.
        """
        step = self._resume()
        log = RunLog(self.folder, step) if self.is_first_process else None
        batches: Any = iter(training.batches(step))
        progress = Progress(self.plan.name, step, self.plan.total_steps, self.is_shown)
        try:
            with progress, self.stop.held():
                while not training.is_done(step):
                    step = self._step(step, batches, training, log)
                    progress.update(step, self._loss)
        finally:
            batches.close()  # ends the workers
            if log is not None:
                log.close()
        return step

    def _step(self, step: int, batches: Iterator[Any], training: Training, log: RunLog | None) -> int:
        """One step, and what comes after it; returns the steps that are done."""
        started = time.perf_counter()
        micro_batches = list(itertools.islice(batches, self.plan.accumulate_steps))
        waited_s = time.perf_counter() - started
        result = self.trainer.train_step(micro_batches, step)
        self._loss = result.loss
        try:
            self._after_step(step + 1, result, waited_s, training, log)
        except NotFiniteError as error:
            raise M2DError(f"{error} {self._tell_checkpoint(step + 1)}") from error
        return step + 1

    def _after_step(
        self, done: int, result: StepResult, waited_s: float, training: Training, log: RunLog | None
    ) -> None:
        """Checks, measures, records and saves."""
        self._check(done, result)
        metrics = {**result.metrics(), "data_seconds": waited_s, **training.measure(done, result, log)}
        if log is not None:
            log.write(done, metrics, is_left_out=not result.is_taken)
        signal_number = self.stop.agreed(self.trainer.accelerator)
        if self._saves(done) or (signal_number and not self._left_out_in_a_row):
            self._save(done, training, log)
        if signal_number:
            told = "" if self._left_out_in_a_row else ", which is saved"
            self.trainer.accelerator.end_training()
            raise Stopped(signal_number, f" after step {done}{told}")

    def _resume(self) -> int:
        """Goes on from the latest checkpoint; returns the steps that are done."""
        checkpoints = list_checkpoints(self.folder)
        if not checkpoints:
            return 0
        state = read_state(checkpoints[-1])
        restore_state(state, self.trainer.model, self.trainer.optimizer)
        if state.loss_scale:
            self.trainer.updater.scaler.load_state_dict(state.loss_scale)
        logger.info("Resumed%s from step %d", f" {self.plan.name}," if self.plan.name else "", state.step)
        return state.step

    def _check(self, done: int, result: StepResult) -> None:
        """Tells of a step that was left out; several in a row end the training."""
        if result.is_taken or result.is_overflow:
            self._left_out_in_a_row = 0
            return
        self._left_out_in_a_row += 1
        figure = result.grad_norm if math.isfinite(result.loss) else result.loss
        what = "the gradient norm" if math.isfinite(result.loss) else "the loss"
        at_end = done >= self.plan.total_steps
        if self._left_out_in_a_row <= (MOST_LEFT_OUT_AT_END if at_end else MOST_LEFT_OUT_IN_A_ROW):
            logger.warning("%s is %s at step %d: the step is left out.", what, figure, done)
            return
        raise NotFiniteError(
            f"{what} is {figure} at step {done}, the last of {self._left_out_in_a_row} in a row."
        )

    def _tell_checkpoint(self, done: int) -> str:
        """What to do. Sets a checkpoint aside whose weights gave no finite step."""
        last_taken = done - self._left_out_in_a_row
        told = f"To go on, {self.plan.advice}. "
        checkpoints = list_checkpoints(self.folder)
        if checkpoints and step_of(checkpoints[-1]) == last_taken:
            latest = checkpoints.pop()
            if self.is_first_process:
                latest = set_aside(latest)
            told += f"No step after step {last_taken} was finite: its checkpoint is set aside as {latest}. "
        if not checkpoints:
            return f"{told}There is no other checkpoint: the run would begin anew."
        return f"{told}The run goes on from the checkpoint of step {step_of(checkpoints[-1])}."

    def _saves(self, done: int) -> bool:
        """Never in a row of steps that were left out: what lies before it must stay."""
        plan = self.plan
        at_multiple = done % plan.save_every_steps == 0 or done % plan.keep_every_steps == 0
        return done == plan.total_steps or (at_multiple and not self._left_out_in_a_row)

    def _save(self, done: int, training: Training, log: RunLog | None) -> None:
        state = gather_state(done, self.trainer.model, self.trainer.optimizer)
        state.loss_scale = self.trainer.updater.scaler.state_dict()
        require_finite({"weights": state.model, "optimizer": state.optimizer}, f"the state after step {done}")
        training.before_save(log)
        if self.is_first_process:
            write_state(self.folder, state, self.plan.keep_every_steps)
