"""What encoding and classifying give back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Features over time, with what is audio and when it sounds.

    Shapes: B clips, T tokens along time of the longest clip, L layers.
    """

    features: Tensor  # (B, T, N_F·D), or (L, B, T, N_F·D) for all layers; zero where mask is False
    mask: Tensor  # (B, T) bool, True where audio is
    timestamps_s: Tensor  # (T,) centres of the tokens' frames, seconds


@dataclass(frozen=True)
class Tag:
    """A class that was heard."""

    label: str  # its name, or its index as text where the model has no names
    score: float  # 0 to 1
    index: int  # output of the head
