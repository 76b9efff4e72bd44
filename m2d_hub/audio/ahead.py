"""Files read by threads while what was read before them is encoded: in order, and in bounded memory.

Opening a file is cheap and done by who asks, so that a bad one is found first; decoding and resampling, which
let other threads of Python run, are done here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.audio.clips import AudioClip, Clip
from m2d_hub.audio.stored import StoredFile
from m2d_hub.checks import POSITIVE_INTEGER, require

CLIPS_AHEAD = 32  # begun, at most, and not yet taken
BYTES_AHEAD = 32 << 20  # of waveform, at most; the clip whose turn it is may always have one block more
_LESS_URGENT = 10  # of 19: how far readers stand behind the threads of the encoder, where both use the CPU
_MOST_WORKERS = 16  # by default: more files than that are seldom read at once without a queue at the disk


def default_workers() -> int:
    """Threads that read ahead where nobody says how many: one a core that this process may use, less one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores - 1, _MOST_WORKERS))


class ReadAhead:
    """Threads that read clips in the order in which they are added; used in a ``with``, which ends them.

    Clips must be taken, or closed, in that order. Nothing is changed by the threads: neither the samples, nor
    an error, which is raised where the clip is taken.
    """

    def __init__(self, num_workers: int | None = None, device: torch.device | None = None):
        """Starts no thread before there is a file to read.

        Args:
            num_workers: Most threads; None: :func:`default_workers`.
            device: Where the samples are going; where that is the CPU, the threads give way to the encoder's.

        Raises:
            ConfigError: ``num_workers`` is less than 1.
        """
        require(
            num_workers is None or num_workers in POSITIVE_INTEGER,
            f"num_workers must be {POSITIVE_INTEGER} or None, got {num_workers!r}.",
        )
        self._num_workers = default_workers() if num_workers is None else num_workers
        self._gives_way = device is None or device.type == "cpu"
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[AheadClip] = deque()  # added, not yet begun
        self._unfinished: deque[AheadClip] = deque()  # added, not yet closed
        self._num_begun = 0  # of those
        self._num_bytes = 0  # read, not yet taken
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def add(self, clip: AudioClip) -> AudioClip:
        """The clip, read ahead where it is a file of its own; file objects may share one place to read at."""
        if not isinstance(clip, Clip) or not isinstance(clip.source, (Path, StoredFile)):
            return clip
        ahead = AheadClip(clip, self)
        with self._changed:
            self._waiting.append(ahead)
            self._unfinished.append(ahead)
            self._changed.notify_all()
        if len(self._threads) < self._num_workers:
            # A daemon, as it must not keep a program alive that was ended in the midst.
            self._threads.append(threading.Thread(target=self._work, name="m2d_hub reader", daemon=True))
            self._threads[-1].start()
        return ahead

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        if self._gives_way:
            _give_way()
        while (ahead := self._begin()) is not None:
            error = None
            try:
                for block in ahead.clip.blocks():
                    if not self._put(ahead, block):
                        break
            except Exception as raised:  # noqa: BLE001  # it is raised again where the clip is taken
                error = raised
            with self._changed:
                ahead.error, ahead.is_read = error, True
                self._changed.notify_all()

    def _begin(self) -> AheadClip | None:
        """The next clip to read; None: there is nothing to do any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._waiting and self._num_begun < CLIPS_AHEAD))
            if self._stopped:
                return None
            self._num_begun += 1
            ahead = self._waiting.popleft()
            ahead.is_begun = True
            return ahead

    def _put(self, ahead: AheadClip, block: Tensor) -> bool:
        """Keeps a block until it is taken, once there is room; False: nobody wants it."""

        def has_room() -> bool:
            is_next = ahead is self._unfinished[0] and not ahead.read_blocks
            return is_next or self._num_bytes + block.nbytes <= BYTES_AHEAD

        with self._changed:
            self._changed.wait_for(lambda: self._stopped or ahead.is_closed or has_room())
            if self._stopped or ahead.is_closed:
                return False
            self._num_bytes += block.nbytes
            ahead.read_blocks.append(block)
            self._changed.notify_all()
            return True

    def take(self, ahead: AheadClip) -> Tensor | None:
        """The next block of a clip; None: it has ended.

        Raises:
            AudioError: As for :meth:`m2d_hub.audio.Clip.blocks`.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: ahead.read_blocks or ahead.is_read or ahead.is_closed or self._stopped
            )
            if ahead.is_closed or self._stopped:
                raise RuntimeError(f"{ahead.clip.name} was taken or let go before.")
            if ahead.read_blocks:
                block = ahead.read_blocks.popleft()
                self._num_bytes -= block.nbytes
                self._changed.notify_all()
                return block
        if ahead.error is not None:
            raise ahead.error
        return None

    def close(self, ahead: AheadClip) -> None:
        """Lets a clip go, read or not, and with it what was read of it."""
        with self._changed:
            if ahead.is_closed:
                return
            ahead.is_closed = True
            self._num_bytes -= sum(block.nbytes for block in ahead.read_blocks)
            ahead.read_blocks.clear()
            if ahead.is_begun:
                self._num_begun -= 1
            else:
                self._waiting.remove(ahead)
            self._unfinished.remove(ahead)
            self._changed.notify_all()


def _give_way() -> None:
    """Lets other threads go first where the system orders threads, not processes.

    An encoder's threads wait for one another at each layer: one that a reader holds up holds up all.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(nice + _LESS_URGENT, 19))


class AheadClip(AudioClip):
    """A clip of :meth:`ReadAhead.add`."""

    def __init__(self, clip: Clip, reader: ReadAhead):
        self.clip, self._reader = clip, reader
        self.expected_samples = clip.expected_samples
        self.read_blocks: deque[Tensor] = deque()
        self.error: Exception | None = None
        self.is_begun = self.is_read = self.is_closed = False

    def blocks(self) -> Iterator[Tensor]:
        try:
            while (block := self._reader.take(self)) is not None:
                yield block
        finally:
            self.close()

    def close(self) -> None:
        """Lets it go; what was not taken is gone."""
        self._reader.close(self)
