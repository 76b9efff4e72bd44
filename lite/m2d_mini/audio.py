"""Audio files and arrays as mono waveforms at 16 kHz."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

RATE = 16_000  # Hz
Audio = str | os.PathLike[str] | BinaryIO | np.ndarray | Sequence[float]


class AudioError(ValueError):
    """Audio is missing, unreadable, empty or not finite."""


def read_all(audio: Audio | list[Audio], sample_rate: int | None) -> list[np.ndarray]:
    """Return the waveform (S,) of each clip.

    Args:
        audio: A path, a file object, a 1-D array, a 2-D array (a batch of clips), or a list of these.
        sample_rate: Hz of arrays; None means 16 kHz.

    Raises:
        AudioError: The message names the clip.
    """
    if isinstance(audio, list) and not (audio and all(isinstance(value, (int, float)) for value in audio)):
        return [waveform for clip in audio for waveform in read_all(clip, sample_rate)]
    if isinstance(audio, (str, os.PathLike)) or hasattr(audio, "read"):
        return [_finished(*_read_file(audio), str(getattr(audio, "name", audio)))]
    rows = _as_float(np.asarray(audio))
    if rows.ndim not in (1, 2):
        raise AudioError(
            f"An array must have 1 or 2 dimensions, got shape {rows.shape}; pass a list of clips."
        )
    return [_finished(row, sample_rate or RATE, "the array") for row in np.atleast_2d(rows)]


def _as_float(array: np.ndarray) -> np.ndarray:
    """Return samples as float32; integers are scaled to [-1, 1)."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind != "i" or array.dtype.itemsize > 4:
        raise AudioError(f"Samples of type {array.dtype} are not supported; use float32 or int16.")
    return array.astype(np.float32) / 2.0 ** (8 * array.dtype.itemsize - 1)


def _finished(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Return a waveform (S,) or (S, C) as mono at 16 kHz."""
    if not samples.size:
        raise AudioError(f"{name} is empty: it holds no samples.")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} has samples that are not finite.")
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if rate == RATE:
        return samples
    length = -(-len(samples) * RATE // rate)  # rounded up, as librosa does; soxr rounds down
    resampled = soxr.resample(samples, rate, RATE, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def _read_file(file: Any) -> tuple[np.ndarray, int]:
    """Return the samples (S, C) and the rate of a file."""
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        return samples, rate
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = error
    if isinstance(file, (str, os.PathLike)) and not os.path.isfile(file):
        raise AudioError(f"{file} does not exist or is not a file; give an audio file.")
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{getattr(file, 'name', file)} cannot be read ({reason}). For M4A, WebM and other formats, "
            "install PyAV: pip install 'm2d-mini[formats]'."
        ) from reason
    try:
        with av.open(file if hasattr(file, "read") else os.fspath(file)) as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            frames = [part for frame in container.decode(stream) for part in resampler.resample(frame)]
            blocks = [frame.to_ndarray() for frame in [*frames, *resampler.resample(None)]]
            return np.concatenate(blocks, axis=1).T, stream.rate
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise AudioError(f"{getattr(file, 'name', file)} cannot be read as audio ({error}).") from error
