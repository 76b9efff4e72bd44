"""Results of encoding and classifying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from m2d_hub.checks import POSITIVE_INTEGER, require


@dataclass(frozen=True)
class Frames:
    """Features over time, with a mask and timestamps.

    Shapes: B clips, T frames of the longest clip, N_F tokens per frame, L layers.
    """

    # (B, T, N_F·D); (L, B, T, N_F·D) for layers, (B, N_F·T, D) for tokens, (B, T, classes) for scores; zero
    # where the mask is False
    features: Tensor
    mask: Tensor  # (B, T) bool, True for audio, False for padding
    timestamps_s: Tensor  # (T,) centres of the frames, seconds


@dataclass(frozen=True)
class Segments:
    """Features of segments of recordings, in order of clip and start."""

    features: Tensor  # (N, D)
    clip: Tensor  # (N,) index of the clip in the call
    start_s: Tensor  # (N,) float64
    end_s: Tensor  # (N,) float64


@dataclass(frozen=True)
class Tag:
    """A class with its score."""

    label: str  # class name, or the index if the model has no labels
    score: float  # 0 to 1
    index: int  # of the class in the output of the head


def require_top_k(top_k: object) -> None:
    """Raise a ConfigError unless ``top_k`` is a positive integer."""
    require(top_k in POSITIVE_INTEGER, f"top_k must be {POSITIVE_INTEGER}, got {top_k!r}.")


def top_tags(logits: Tensor, scores: Tensor, labels: Sequence[str], top_k: int) -> list[list[Tag]]:
    """Return the classes with the highest scores of each clip, best first.

    Args:
        logits: (B, C), used for the order, since scores near 1 round to the same number.
        scores: (B, C), from 0 to 1.
        labels: Names of the C classes.
        top_k: Maximum number of tags per clip.
    """
    best = logits.topk(min(top_k, logits.shape[1]), dim=1).indices
    return [
        [Tag(labels[index], score, index) for score, index in zip(*pair, strict=True)]
        for pair in zip(scores.gather(1, best).tolist(), best.tolist(), strict=True)
    ]
