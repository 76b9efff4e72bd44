"""Find recordings that occur under two names: games share sounds, re-encoded, so checksums differ.

A fingerprint is the log power of 20 bands over the first 1.5 seconds after the onset, in steps of 30 ms,
minus its mean. Two clips are alike if their fingerprints and lengths nearly agree.
Shapes: N clips, T steps, F bands.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16_000  # Hz
STEP, WINDOW = 480, 512  # samples
STEPS, BANDS = 50, 20
MIN_STEPS = 4
LOWEST_BIN, HIGHEST_BIN = 4, 200  # of the spectrum of a window: 125 Hz to 6.25 kHz
ONSET = 0.02  # share of the largest value at which a clip starts
LENGTH_TOLERANCE = 1 / 8
LIKENESS = 0.975  # minimum correlation


def fingerprint(path: Path) -> tuple[np.ndarray, int]:
    """Return log powers (T, F) and the number of steps with sound."""
    waveform, _ = soundfile.read(path, frames=2 * SAMPLE_RATE, dtype="float32")
    heard = np.flatnonzero(np.abs(waveform) > ONSET * np.abs(waveform).max(initial=1e-6))
    waveform = waveform[heard[0] if len(heard) else 0 :][: STEPS * STEP]
    steps = int(np.clip(len(waveform) // STEP, MIN_STEPS, STEPS))
    padded = np.pad(waveform, (0, STEPS * STEP + WINDOW - len(waveform)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:: STEP // 2][: 2 * STEPS]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW))) ** 2
    edges = np.geomspace(LOWEST_BIN, HIGHEST_BIN, BANDS + 1).astype(int)
    pairs = itertools.pairwise(edges)
    bands = np.stack([power[:, low : max(high, low + 1)].mean(axis=1) for low, high in pairs], axis=1)
    log = np.log(bands + 1e-7 * bands.max() + 1e-12)
    return log.reshape(STEPS, 2, BANDS).mean(axis=1), steps


def alike(paths: Sequence[Path], others: Sequence[Path]) -> set[int]:
    """Return the indices of ``paths`` that are the same recording as one of ``others``."""
    if not paths or not others:
        return set()
    stacked = [fingerprint(path) for path in others]
    logs, lengths = np.stack([log for log, _ in stacked]), np.array([steps for _, steps in stacked])
    found = set()
    for place, path in enumerate(paths):
        log, steps = fingerprint(path)
        near = np.abs(lengths - steps) <= max(2, steps * LENGTH_TOLERANCE)
        rest = _centred(logs[near, :steps])
        own = _centred(log[None, :steps])
        products = (rest * own).sum(axis=(1, 2))
        norms = np.sqrt((rest**2).sum(axis=(1, 2)) * (own**2).sum()) + 1e-9
        if (products / norms > LIKENESS).any():
            found.add(place)
    return found


def _centred(log: np.ndarray) -> np.ndarray:
    return log - log.mean(axis=(1, 2), keepdims=True)
