"""SIGTERM and SIGINT as a request to stop: a training saves first, everything else stops at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_S = 2.0  # launchers pass a signal on that the process has got already


class Stopped(SystemExit):
    """The end that a signal asked for; its exit status is 128 + the signal's number."""

    def __init__(self, number: int, what: str = ""):
        super().__init__(128 + number)
        self.told = f"Stopped by {signal.Signals(number).name}{what}; run it again to go on."


class StopRequests:
    """The signal that came, if any."""

    def __init__(self) -> None:
        self._number = 0
        self._came_at = 0.0
        self._is_held = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, a request waits to be asked for; a second one, seconds later, does not."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def agreed(self, accelerator: Any) -> int:
        """Number of the signal that any process has got, the same in all of them; 0: none."""
        if accelerator.num_processes == 1:
            return self._number
        number = torch.tensor([self._number], device=accelerator.device)
        return int(accelerator.gather(number).max())

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        now = time.monotonic()
        is_repeated = self._number and now - self._came_at > SAME_REQUEST_S
        if not self._is_held or is_repeated:
            raise Stopped(number)
        if not self._number:
            self._number, self._came_at = number, now


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Handles the signals, in the main thread, and tells in a line why it ended."""
    requests = StopRequests()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, requests.receive)
    try:
        yield requests
    except Stopped as stopped:
        logger.warning("%s", stopped.told)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
