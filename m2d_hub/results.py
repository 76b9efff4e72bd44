"""Results of encoding and classifying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from m2d_hub.checks import POSITIVE_INTEGER, require


@dataclass(frozen=True)
class Frames:
    """Features over time, with what is audio and when it sounds.

    Shapes: B clips, T frames of the longest clip, N_F tokens a frame, L layers.
    """

    # (B, T, N_F·D); of all layers (L, B, T, N_F·D), of tokens (B, N_F·T, D), of tags (B, T, classes); zero
    # where the mask is False
    features: Tensor
    mask: Tensor  # (B, T) bool, True where audio is
    timestamps_s: Tensor  # (T,) centres of the frames, seconds


@dataclass(frozen=True)
class Tag:
    """A class that was heard."""

    label: str  # its name, or its index as text where the model has no names
    score: float  # 0 to 1
    index: int  # output of the head


def require_top_k(top_k: object) -> None:
    """Raises a ConfigError unless ``top_k`` is a number of tags."""
    require(top_k in POSITIVE_INTEGER, f"top_k must be {POSITIVE_INTEGER}, got {top_k!r}.")


def top_tags(logits: Tensor, scores: Tensor, labels: Sequence[str], top_k: int) -> list[list[Tag]]:
    """The best classes of each clip, the best first.

    Args:
        logits: (B, C); they rank, since scores round what is certain to the same 1.0.
        scores: 0 to 1 (B, C).
        labels: Names of the C classes.
        top_k: Most tags of a clip.
    """
    best = logits.topk(min(top_k, logits.shape[1]), dim=1).indices
    return [
        [Tag(labels[index], score, index) for score, index in zip(*pair, strict=True)]
        for pair in zip(scores.gather(1, best).tolist(), best.tolist(), strict=True)
    ]
