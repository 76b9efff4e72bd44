"""Events from scores over time: median filter, two thresholds, longest gap and shortest duration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m2d_hub.checks import SHARE, Numbers, require
from m2d_hub.errors import ConfigError

Threshold = float | Mapping[str, float]
SILENCE_DBFS = -60.0  # default level below which a window has no tags
_SECONDS = Numbers(0)


@dataclass(frozen=True)
class Event:
    """A sound with its position in a recording."""

    label: str  # class name, or the index if the model has no labels
    start_s: float
    end_s: float
    score: float  # the highest of its frames, 0 to 1


@dataclass(frozen=True)
class Detection:
    """Settings of the detection of events in the scores of frames.

    Attributes:
        threshold: Score that at least one frame of an event reaches, from 0 to 1: one for all classes, or one
            per class by label. Classes without a threshold are not detected.
        offset_threshold: Score that all frames of an event reach. None: half of ``threshold``.
        median_s: Length of the median filter over the scores, rounded to an odd number of frames.
        max_gap_s: Longest gap between two events of a class that are joined.
        min_duration_s: Shortest duration of an event, after joining.
        silence_dbfs: RMS level of a window, in dB relative to full scale, below which it has no events.

    Raises:
        ConfigError: A value is out of range, or an offset threshold is higher than its threshold.
    """

    threshold: Threshold = 0.5
    offset_threshold: Threshold | None = None
    median_s: float = 0.0
    max_gap_s: float = 0.0
    min_duration_s: float = 0.0
    silence_dbfs: float = SILENCE_DBFS

    def __post_init__(self) -> None:
        for name in ("median_s", "max_gap_s", "min_duration_s"):
            value = getattr(self, name)
            require(value in _SECONDS, f"{name} must be {_SECONDS} seconds, got {value!r}.")

    def thresholds(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the onset and offset thresholds of each class (C,); infinity for classes to ignore."""
        onset = _by_class("threshold", self.threshold, labels)
        if self.offset_threshold is None:
            return onset, onset / 2
        offset = _by_class("offset_threshold", self.offset_threshold, labels)
        if wrong := [label for label, high, low in zip(labels, onset, offset, strict=True) if low > high]:
            raise ConfigError(
                f"offset_threshold is higher than threshold for {wrong[0]!r}; give a lower or an equal one."
            )
        return onset, offset


def _by_class(name: str, value: Threshold, labels: Sequence[str]) -> np.ndarray:
    by_label = value if isinstance(value, Mapping) else dict.fromkeys(labels, value)
    if unknown := sorted(set(by_label) - set(labels)):
        raise ConfigError(f"{name} has {unknown[0]!r}, which is not a label of the model; see model.labels.")
    for number in by_label.values():
        require(number in SHARE, f"{name} must be {SHARE}, or one such number per label, got {number!r}.")
    return np.array([by_label.get(label, np.inf) for label in labels], np.float32)


@dataclass
class _Run:
    """Consecutive frames of one class above the offset threshold."""

    start: int  # first frame
    stop: int  # frame after the last one
    peak: float


class EventFinder:
    """Find the events of one recording in scores that arrive block by block, in constant memory."""

    def __init__(self, labels: Sequence[str], detection: Detection, frame_s: float):
        """Create a finder for frames of ``frame_s`` seconds."""
        self.num_frames = 0  # of all blocks
        self._labels, self._frame_s = labels, frame_s
        self._onset, self._offset = detection.thresholds(labels)
        self._reach = round(detection.median_s / frame_s) // 2  # frames of the median filter on either side
        self._max_gap = round(detection.max_gap_s / frame_s)
        self._min_frames = round(detection.min_duration_s / frame_s)
        self._context = np.zeros((0, len(labels)), np.float32)  # scores that the median filter still needs
        self._num_filtered = 0
        self._open: dict[int, _Run] = {}  # by class: may continue in the next block
        self._joinable: dict[int, _Run] = {}  # by class: may be joined with the next run
        self._found: list[tuple[int, _Run]] = []

    def push(self, scores: np.ndarray) -> None:
        """Add the scores (T, C) of the next frames, from 0 to 1."""
        self.num_frames += len(scores)
        if self._reach and not len(self._context):
            scores = np.concatenate([scores[:1].repeat(self._reach, axis=0), scores])
        self._filter(scores)

    def finish(self, starts_s: np.ndarray, duration_s: float) -> list[Event]:
        """Return the events, sorted by start.

        Args:
            starts_s: Start of each frame in seconds (T,).
            duration_s: Duration of the recording, which no event exceeds.
        """
        if self._reach and len(self._context):
            self._filter(self._context[-1:].repeat(self._reach, axis=0))
        for label, run in self._open.items():
            self._close(label, run)
        for label, run in self._joinable.items():
            self._keep(label, run)
        events = []
        for label, run in self._found:
            end_s = min(float(starts_s[run.stop - 1]) + self._frame_s, duration_s)
            events.append(Event(self._labels[label], float(starts_s[run.start]), end_s, run.peak))
        return sorted(events, key=lambda event: (event.start_s, event.label))

    def _filter(self, scores: np.ndarray) -> None:
        width = 2 * self._reach + 1
        scores = np.concatenate([self._context, scores])
        self._context = scores[max(0, len(scores) - width + 1) :]
        if len(scores) < width:
            return
        if width > 1:
            scores = np.median(np.lib.stride_tricks.sliding_window_view(scores, width, axis=0), axis=-1)
        self._find(scores)

    def _find(self, scores: np.ndarray) -> None:
        first = self._num_filtered
        self._num_filtered += len(scores)
        is_active = scores >= self._offset
        for label in {*np.flatnonzero(is_active.any(axis=0)).tolist(), *self._open}:
            run = self._open.pop(label, None)
            edges = np.flatnonzero(np.diff(is_active[:, label], prepend=False, append=False))
            for start, stop in edges.reshape(-1, 2).tolist():
                peak = float(scores[start:stop, label].max())
                if run is not None and run.stop == first + start:
                    run.stop, run.peak = first + stop, max(run.peak, peak)
                    continue
                if run is not None:
                    self._close(label, run)
                run = _Run(first + start, first + stop, peak)
            if run is not None and run.stop == self._num_filtered:
                self._open[label] = run
            elif run is not None:
                self._close(label, run)

    def _close(self, label: int, run: _Run) -> None:
        """Join a run with the one before it, or keep that one."""
        if run.peak < self._onset[label]:
            return
        before = self._joinable.get(label)
        if before is not None and run.start - before.stop <= self._max_gap:
            before.stop, before.peak = run.stop, max(before.peak, run.peak)
            return
        if before is not None:
            self._keep(label, before)
        self._joinable[label] = run

    def _keep(self, label: int, run: _Run) -> None:
        if run.stop - run.start >= self._min_frames:
            self._found.append((label, run))
