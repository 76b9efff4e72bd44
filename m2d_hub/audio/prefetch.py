"""Prefetching: threads decode and resample files while earlier ones are encoded, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition

from torch import Tensor

from m2d_hub.audio.clips import AudioClip, Clip
from m2d_hub.audio.stored import StoredFile
from m2d_hub.checks import POSITIVE_INTEGER, require

CLIPS_AHEAD = 32  # clips that a job of many calls opens before it reads the first of them
BYTES_AHEAD = 32 << 20  # maximum size of the waveforms that wait; the next clip may always have one block
_MAX_WORKERS = 16  # by default: more files are seldom read at once without waiting for the disk


def default_workers() -> int:
    """Return the default number of threads: the cores that this process may use, minus one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores - 1, _MAX_WORKERS))


class Prefetcher:
    """Threads that read clips in the order in which they are added; used in a ``with``, which ends them.

    Clips must be read or closed in that order. Samples and errors are those of the clip itself.
    """

    def __init__(self, num_workers: int | None = None):
        """Start at most ``num_workers`` threads, as files are added; None: :func:`default_workers`.

        Raises:
            ConfigError: ``num_workers`` is less than 1.
        """
        require(
            num_workers is None or num_workers in POSITIVE_INTEGER,
            f"num_workers must be {POSITIVE_INTEGER} or None, got {num_workers!r}.",
        )
        self._threads = ThreadPoolExecutor(num_workers or default_workers(), "m2d_hub prefetch")
        self.clips: deque[PrefetchedClip] = deque()  # added and not closed, in order
        self.changed = Condition()  # guards the number of bytes and the items of all clips
        self.num_bytes = 0  # of the blocks that wait

    def add(self, clip: AudioClip) -> AudioClip:
        """Return the clip, to be prefetched if it is a file. File objects may share a read position."""
        if not isinstance(clip, Clip) or not isinstance(clip.source, (Path, StoredFile)):
            return clip
        prefetched = PrefetchedClip(clip, self)
        self.clips.append(prefetched)
        self._threads.submit(prefetched.read)
        return prefetched

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        for clip in list(self.clips):
            clip.close()
        self._threads.shutdown(cancel_futures=True)


class PrefetchedClip(AudioClip):
    """A clip of :meth:`Prefetcher.add`."""

    def __init__(self, clip: Clip, prefetcher: Prefetcher):
        self.expected_samples = clip.expected_samples
        self._clip, self._prefetcher, self._is_closed = clip, prefetcher, False
        self._items: deque[Tensor | Exception | None] = deque()  # None: the end

    def read(self) -> None:
        """Read the clip, in a thread, until it ends or is closed."""
        end = None
        try:
            for block in self._clip.blocks():
                if not self._put(block):
                    return
        except Exception as error:  # noqa: BLE001 - raised again where the clip is read
            end = error
        self._put(end)

    def blocks(self) -> Iterator[Tensor]:
        if self._is_closed:
            raise RuntimeError(f"{self._clip.name} was already read or closed.")
        try:
            while (item := self._take()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """Release the clip, discarding what was not read."""
        shared = self._prefetcher
        with shared.changed:
            if not self._is_closed:
                self._is_closed = True
                shared.num_bytes -= sum(map(_num_bytes, self._items))
                self._items.clear()
                shared.clips.remove(self)
                shared.changed.notify_all()

    def _put(self, item: Tensor | Exception | None) -> bool:
        """Store an item when there is room; return False if the clip was closed."""
        shared = self._prefetcher
        with shared.changed:
            shared.changed.wait_for(
                lambda: (
                    self._is_closed
                    or shared.num_bytes < BYTES_AHEAD
                    or (not self._items and shared.clips[0] is self)
                )
            )
            if not self._is_closed:
                self._items.append(item)
                shared.num_bytes += _num_bytes(item)
                shared.changed.notify_all()
            return not self._is_closed

    def _take(self) -> Tensor | Exception | None:
        shared = self._prefetcher
        with shared.changed:
            shared.changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            shared.num_bytes -= _num_bytes(item)
            shared.changed.notify_all()
            return item


def _num_bytes(item: object) -> int:
    return item.nbytes if isinstance(item, Tensor) else 0
