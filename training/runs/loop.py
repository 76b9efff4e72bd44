"""The outer loop of every training: steps, what is measured and saved after them, and how it ends."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from m2d_hub.errors import CheckpointError, M2DError

from .folder import RunFolder
from .log import Progress, RunLog
from .optimization import Step, Stepper
from .state import (
    NotFiniteError,
    gather_state,
    list_checkpoints,
    restore_state,
    set_aside,
    step_of,
    write_state,
)
from .stopping import Stopped, StopRequests

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 2  # steps that are not finite; one more ends the training
MAX_SKIPPED_AT_END = 1


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

    def batches(self, first_step: int) -> Iterable[Any]:
        """Yield batches of this process from a step on."""

    def train_step(self, batches: list[Any], step: int) -> Step:
        """Take one optimizer step, counted from 0."""

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
        progress = Progress(self.plan.name or "training", step, self.plan.total_steps, "step", self.is_shown)
        try:
            with progress, self.stop.held():
                while not self.training.is_done(step):
                    loss = self._step(step, batches, log)
                    step += 1
                    progress.update(note=f", loss {loss:.4g}")
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
        figure = result.grad_norm if math.isfinite(result.loss) else result.loss
        what = "the gradient norm" if math.isfinite(result.loss) else "the loss"
        at_end = done >= self.plan.total_steps
        if self._skipped_in_a_row <= (MAX_SKIPPED_AT_END if at_end else MAX_SKIPPED_IN_A_ROW):
            logger.warning("%s is %s at step %d: the step is skipped.", what, figure, done)
            return
        raise NotFiniteError(
            f"{what} is {figure} at step {done}, the last of {self._skipped_in_a_row} in a row."
        )

    def _hint(self, done: int) -> str:
        """What to do. Sets a checkpoint aside whose weights gave no finite step."""
        last_taken = done - self._skipped_in_a_row
        hint = f"To resume, {self.plan.hint}. "
        checkpoints = list_checkpoints(self.folder)
        if checkpoints and step_of(checkpoints[-1]) == last_taken:
            latest = checkpoints.pop()
            if self.is_first_process:
                latest = set_aside(latest)
            hint += f"No step after step {last_taken} was finite: its checkpoint is set aside as {latest}. "
        if not checkpoints:
            return f"{hint}There is no other checkpoint: the run would start from scratch."
        return f"{hint}The run resumes from the checkpoint of step {step_of(checkpoints[-1])}."

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
