"""How far a training is: a bar where somebody watches, else a line in the log now and then."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

logger = logging.getLogger(__name__)

LINES = 20  # of a whole training, at least
LINE_INTERVAL_S = 600.0  # at most between two of them


class Progress:
    """Counts steps aloud."""

    def __init__(self, name: str, first_step: int, total_steps: int, is_shown: bool):
        """Starts counting.

        Args:
            name: Of the training; may be empty.
            first_step: Steps that are done.
            total_steps: Steps of the whole training.
            is_shown: Whether there is anything to see at all.
        """
        from tqdm import tqdm

        is_watched = sys.stderr.isatty()
        self.name, self.total_steps = name, total_steps
        self._writes_lines = is_shown and not is_watched
        self._bar = tqdm(
            desc=name or "training",
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not (is_shown and is_watched),
        )
        self._started = self._told_at = time.monotonic()
        self._first_step = self._told_step = first_step

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, done: int, loss: float) -> None:
        """One more step."""
        self._bar.update()
        now = time.monotonic()
        is_due = (done - self._told_step) * LINES >= self.total_steps or done == self.total_steps
        if not self._writes_lines or not (is_due or now - self._told_at > LINE_INTERVAL_S):
            return
        speed = (done - self._first_step) / max(now - self._started, 1e-9)
        minutes = (self.total_steps - done) / speed / 60
        logger.info(
            "%sstep %d of %d, loss %.4g, %.3g steps/s, %.0f min left",
            f"{self.name}: " if self.name else "",
            done,
            self.total_steps,
            loss,
            speed,
            minutes,
        )
        self._told_at, self._told_step = now, done
