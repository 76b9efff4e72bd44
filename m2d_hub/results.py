"""Results of encoding and classifying."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
