"""Embeddings and tags of waveforms by the ONNX files in this package."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_mini.audio import RATE, Audio, read_all

FOLDER = Path(__file__).parent
WINDOW = 33_280  # samples that the encoder processes at once
FRAME_S = 0.16  # seconds from one frame to the next
FIRST_FRAME_S = 0.075  # centre of the first frame
CHUNK_WINDOWS = 24  # encoded at once, so that memory does not grow with the length of a clip
SILENCE_DBFS = -60.0  # level below which a clip has no tags


@dataclass(frozen=True)
class Frames:
    """Features over time."""

    features: np.ndarray  # (B, T, D), zero where the mask is False
    mask: np.ndarray  # (B, T) bool, True for audio
    timestamps_s: np.ndarray  # (T,) centres of the frames


@dataclass(frozen=True)
class Tag:
    """A class with its score."""

    label: str
    score: float  # 0 to 1
    index: int


def encode_clip(audio: Audio | list[Audio], *, sample_rate: int | None = None) -> np.ndarray:
    """Embed each clip as the mean of its frames.

    Args:
        audio: A path, a file object, a 1-D array, a 2-D array (a batch of clips), or a list of these.
        sample_rate: Hz of arrays; None means 16 kHz.

    Returns:
        (B, 1536) float32.

    Raises:
        AudioError: A clip is missing, unreadable, empty or not finite.
    """
    return np.stack([_frames(waveform).mean(axis=0) for waveform in read_all(audio, sample_rate)])


def encode_frames(audio: Audio | list[Audio], *, sample_rate: int | None = None) -> Frames:
    """Embed each frame of 160 ms; arguments and errors as for :func:`encode_clip`."""
    clips = [_frames(waveform) for waveform in read_all(audio, sample_rate)]
    longest = max(map(len, clips))
    features = np.stack([np.pad(clip, ((0, longest - len(clip)), (0, 0))) for clip in clips])
    mask = np.arange(longest) < np.array([len(clip) for clip in clips])[:, None]
    return Frames(features, mask, FIRST_FRAME_S + FRAME_S * np.arange(longest))


def tag(
    audio: Audio | list[Audio],
    *,
    sample_rate: int | None = None,
    top_k: int = 5,
    silence_dbfs: float = SILENCE_DBFS,
) -> list[list[Tag]]:
    """Return the most likely classes of each clip, best first; audio and errors as for :func:`encode_clip`.

    Args:
        audio: As for :func:`encode_clip`.
        sample_rate: As for :func:`encode_clip`.
        top_k: Maximum number of tags per clip.
        silence_dbfs: RMS level, in dB relative to full scale, that one window of a clip must reach; others
            have no tags.
    """
    return [_tags(waveform, top_k, silence_dbfs) for waveform in read_all(audio, sample_rate)]


def _tags(waveform: np.ndarray, top_k: int, silence_dbfs: float) -> list[Tag]:
    windows = (waveform[start : start + WINDOW] for start in range(0, len(waveform), WINDOW))
    if max(float(np.square(window).mean()) for window in windows) < 10 ** (silence_dbfs / 10):
        return []
    weight, bias, labels = _head()
    logits = _frames(waveform, "m2d-mini-tags").mean(axis=0) @ weight.T + bias
    scores = 1 / (1 + np.exp(-logits))
    best = np.argsort(-logits, kind="stable")[:top_k]
    return [Tag(labels[index], float(scores[index]), int(index)) for index in best]


def _frames(waveform: np.ndarray, name: str = "m2d-mini") -> np.ndarray:
    """Return frames (T, D), computed in parts.

    Parts overlap by a window on each side, whose frames are dropped, since spectrograms reach across windows.
    """
    step, tokens = CHUNK_WINDOWS * WINDOW, round(WINDOW / RATE / FRAME_S)
    found = []
    for start in range(0, len(waveform) + 1, step):
        first = max(0, start - WINDOW)
        part = waveform[first : start + step + WINDOW]
        (frames,) = _session(name).run(["frames"], {"waveform": part[None]})
        skipped = tokens * ((start - first) // WINDOW)
        found.append(frames[0, skipped : skipped + CHUNK_WINDOWS * tokens])
    return np.concatenate(found)


@functools.cache
def _session(name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    path = str(FOLDER / f"{name}.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@functools.cache
def _head() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return weight (K, D) and bias (K,) of the tagger, and its labels."""
    with np.load(FOLDER / "m2d-mini-tags-head.npz") as arrays:
        return arrays["weight"], arrays["bias"], arrays["labels"].tolist()
