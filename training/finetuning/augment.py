"""Augmentation of spectrograms in fine-tuning: mixup, SpecAugment, random resized crops, structured patchout.

What is random is drawn on the CPU, clip by clip; what is done with it is plain functions of whole batches on
any device. Shapes: B clips, F mels, T frames, C classes, K windows, N_F and N_T tokens along frequency and
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.masking import draw_mask

SIZE_SHARE = (0.6, 1.5)  # of a resized crop along either axis, as in BYOL-A
CANVAS_SHARE = 1.5  # of the clip's frames: what lies around the clip is the mean value
MOST_MASKED = 2  # a time mask covers at most 1/2 of its clip


@dataclass(frozen=True)
class AugmentRanges:
    """How strong the augmentations are; zeros and False leave clips as they are."""

    mixup_ratio: float = 0.0  # most of a clip that comes from another one
    frequency_mask: int = 0  # most mels that SpecAugment masks
    time_mask: int = 0  # most frames
    resized_crop: bool = False
    patchout_ratio: float = 0.0  # share of the patches that are dropped


@dataclass(frozen=True)
class AugmentDraw:
    """What is done with one clip."""

    mix_ratio: float  # share of the other clip, λ
    crop_box: tuple[float, float, float, float]  # first mel, first frame, mels, frames; may exceed the clip
    frequency_mask: tuple[int, int]  # first mel and number of mels
    time_mask: tuple[int, int]  # first frame and number of frames


def draw_augmentation(
    ranges: AugmentRanges, num_mels: int, num_frames: int, rng: np.random.Generator
) -> AugmentDraw:
    """Draws what is done with one clip.

    The mixing share is uniform from 0 to ``mixup_ratio``, and the box is that of BYOL-A (its section on
    random resized crops), which the paper's section IV-B names for both. Widths of the masks are uniform from
    0 to their parameters, as in SpecAugment; a time mask is never longer than half of the clip.

    Args:
        ranges: Of the run.
        num_mels: F.
        num_frames: Frames of the clip.
        rng: Source of randomness.
    """
    mix_ratio = float(rng.uniform(0.0, ranges.mixup_ratio))
    box = _draw_box(num_mels, num_frames, rng) if ranges.resized_crop else (0.0, 0.0, num_mels, num_frames)
    longest = min(ranges.time_mask, num_frames // MOST_MASKED)
    return AugmentDraw(
        mix_ratio,
        box,
        frequency_mask=_draw_mask(min(ranges.frequency_mask, num_mels), num_mels, rng),
        time_mask=_draw_mask(longest, num_frames, rng),
    )


def _draw_box(num_mels: int, num_frames: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    canvas = int(num_frames * CANVAS_SHARE)
    mels = min(max(1, int(rng.uniform(*SIZE_SHARE) * num_mels)), num_mels)
    frames = min(max(1, int(rng.uniform(*SIZE_SHARE) * num_frames)), canvas)
    first_mel = int(rng.integers(num_mels - mels + 1))
    first_frame = int(rng.integers(canvas - frames + 1)) - (canvas - num_frames) // 2
    return first_mel, first_frame, mels, frames


def _draw_mask(most: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    width = int(rng.integers(most + 1))
    return int(rng.integers(size - width + 1)), width


def mix_log_mels(log_mel: Tensor, num_frames: Tensor, ratio: Tensor) -> Tensor:
    """Mixes each clip with the next one of its batch, in the power domain (paper, equation 5; BYOL-A).

    A shorter partner repeats. The clips keep their lengths.

    Args:
        log_mel: Before normalisation (B, F, T).
        num_frames: Frames of each clip (B,).
        ratio: Share λ of the partner (B,), from 0 to 1.

    Returns:
        log((1 − λ)·exp(clip) + λ·exp(partner)), (B, F, T).
    """
    partner, partner_frames = log_mel.roll(-1, dims=0), num_frames.roll(-1)
    places = torch.arange(log_mel.shape[-1], device=log_mel.device) % partner_frames[:, None]  # (B, T)
    partner = partner.gather(2, places[:, None].expand_as(log_mel))
    share = ratio[:, None, None]
    return torch.logaddexp(log_mel + torch.log1p(-share), partner + share.log())


def mix_targets(targets: Tensor, ratio: Tensor) -> Tensor:
    """Labels (B, C) of clips that :func:`mix_log_mels` mixed by ``ratio`` (B,): as much of each (mixup)."""
    return torch.lerp(targets, targets.roll(-1, dims=0), ratio[:, None])


def resized_crops(log_mel: Tensor, num_frames: Tensor, boxes: Tensor) -> Tensor:
    """Cuts a box out of each clip and resizes it, bicubically, to the clip's own size (BYOL-A).

    Args:
        log_mel: Normalised (B, F, T), zero beyond each clip's end; zero is also what lies around it.
        num_frames: Frames of each clip (B,).
        boxes: First mel, first frame, mels and frames of each box (B, 4).

    Returns:
        (B, F, T), zero beyond each clip's end.
    """
    _, num_mels, most_frames = log_mel.shape
    first_mel, first_frame, mels, frames = boxes.unbind(1)
    row = (torch.arange(num_mels, device=log_mel.device) + 0.5) / num_mels  # (F,)
    column = (torch.arange(most_frames, device=log_mel.device) + 0.5) / num_frames[:, None]  # (B, T)
    source_row = (first_mel[:, None] + row * mels[:, None]) * 2 / num_mels - 1  # (B, F), -1 … 1
    source_column = (first_frame[:, None] + column * frames[:, None]) * 2 / most_frames - 1
    size = (-1, num_mels, most_frames)
    grid = torch.stack([source_column[:, None].expand(size), source_row[:, :, None].expand(size)], dim=-1)
    cut = F.grid_sample(log_mel[:, None], grid, mode="bicubic", padding_mode="zeros", align_corners=False)[
        :, 0
    ]
    return zero_beyond(cut, num_frames)


def spec_augment(log_mel: Tensor, frequency_masks: Tensor, time_masks: Tensor) -> Tensor:
    """Sets a band of mels and a run of frames of each clip to zero, the mean (SpecAugment).

    Args:
        log_mel: Normalised (B, F, T).
        frequency_masks: First mel and number of mels (B, 2).
        time_masks: First frame and number of frames (B, 2).
    """
    masked = _inside(frequency_masks, log_mel.shape[1])[:, :, None]
    masked = masked | _inside(time_masks, log_mel.shape[2])[:, None]
    return log_mel.masked_fill(masked, 0.0)


def _inside(spans: Tensor, size: int) -> Tensor:
    """Which of ``size`` places (B, size) lie within each span (B, 2)."""
    place = torch.arange(size, device=spans.device)
    return (place >= spans[:, :1]) & (place < spans.sum(dim=1, keepdim=True))


def zero_beyond(log_mel: Tensor, num_frames: Tensor) -> Tensor:
    """Normalised log-mel (B, F, T) with zeros beyond each clip's frames (B,)."""
    frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
    return log_mel * (frames < num_frames[:, None])[:, None]


@dataclass(frozen=True)
class KeptColumns:
    """Structured patchout of one clip: token rows and columns that stay."""

    rows: np.ndarray  # along frequency
    columns: np.ndarray  # along time, over all windows of the clip


def draw_patchout(num_freq: int, num_time: int, ratio: float, rng: np.random.Generator) -> KeptColumns:
    """Draws whole rows and columns of tokens to keep (PaSST's structured patchout).

    Args:
        num_freq: N_F.
        num_time: Tokens along time that the clip reaches.
        ratio: Share of the tokens to drop.
        rng: Source of randomness.
    """
    visible = draw_mask("structured", (num_freq, num_time), ratio, rng).visible_ids
    return KeptColumns(np.unique(visible // num_time), np.unique(visible % num_time))


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of a batch of windows that the encoder sees."""

    ids: Tensor  # (B·K, n) int64, of each window's tokens in frequency-major order
    mask: Tensor  # (B·K, n) bool, False where a window has fewer


def stack_patchout(kept: Sequence[KeptColumns], num_windows: int, window_tokens: int) -> KeptTokens:
    """Turns rows and columns of clips into ids of their windows' tokens.

    Args:
        kept: Of each clip (B).
        num_windows: K, of the longest clip.
        window_tokens: N_T of each window.
    """
    windows = [
        (clip.rows, clip.columns[clip.columns // window_tokens == place] % window_tokens)
        for clip in kept
        for place in range(num_windows)
    ]
    most = max(len(columns) for _, columns in windows)
    ids = np.zeros((len(windows), len(kept[0].rows), most), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for index, (rows, columns) in enumerate(windows):
        ids[index, :, : len(columns)] = rows[:, None] * window_tokens + columns
        mask[index, :, : len(columns)] = True
    return KeptTokens(torch.from_numpy(ids).flatten(1), torch.from_numpy(mask).flatten(1))
