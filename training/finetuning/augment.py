"""Augmentation of spectrograms in fine-tuning: mixup, SpecAugment, random resized crops.

What is random is drawn on the CPU, clip by clip; what is done with it is plain functions of whole batches on
any device. Shapes: B clips, F mels, T frames, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE_SHARE = (0.6, 1.5)  # of a resized crop along either axis, as in BYOL-A
CANVAS_SHARE = 1.5  # of the clip's frames: what lies around the clip is the mean value
MOST_MASKED = 2  # a time mask covers at most 1/2 of its clip


@dataclass(frozen=True)
class AugmentRanges:
    """How strong the augmentations are; zeros and False leave clips as they are."""

    mixup_ratio: float = 0.0  # both parameters of mixup's beta distribution
    frequency_mask: int = 0  # most mels of a band that SpecAugment masks
    time_mask: int = 0  # most frames of a run
    num_masks: int = 1  # bands, and runs
    shared_masks: bool = False  # the same ones for all clips of a batch
    resized_crop: bool = False
    patchout_ratio: float = 0.0  # share of the patches that are dropped


@dataclass(frozen=True)
class AugmentDraw:
    """Random choices for one clip."""

    partner: int  # place in the batch of the clip that is mixed in
    mix_ratio: float  # share of that clip, from 0 to 1
    crop_box: tuple[float, float, float, float]  # first mel, first frame, mels, frames; may exceed the clip
    frequency_masks: list[tuple[int, int]]  # first mel and number of mels of each band
    time_masks: list[tuple[int, int]]  # first frame and number of frames of each run


@dataclass(frozen=True)
class BatchRandomness:
    """The seed that the clips of a batch share: each draws the same numbers from it."""

    seed: tuple[int, ...]
    size: int  # clips of the batch
    place: int  # of this clip

    def rng(self) -> np.random.Generator:
        """A new generator, alike for all clips of the batch."""
        return np.random.default_rng(self.seed)


def draw_augmentation(
    ranges: AugmentRanges, num_mels: int, num_frames: int, rng: np.random.Generator, batch: BatchRandomness
) -> AugmentDraw:
    """Draws what is done with one clip.

    Mixup's share follows Beta(``mixup_ratio``, ``mixup_ratio``), its partner a random permutation of the
    batch (arXiv:1710.09412); the box is that of BYOL-A (its section on random resized crops), which the
    paper's section IV-B names. Widths of the masks are uniform from 0 to their parameters, as in SpecAugment;
    a time mask is never longer than half of the clip.

    Args:
        ranges: Of the run.
        num_mels: F.
        num_frames: Frames of the clip.
        rng: Source of randomness of this clip.
        batch: Of what its batch shares.
    """
    shared = batch.rng()
    partner = int(shared.permutation(batch.size)[batch.place])
    mix_ratio = float(rng.beta(ranges.mixup_ratio, ranges.mixup_ratio)) if ranges.mixup_ratio else 0.0
    box = _draw_box(num_mels, num_frames, rng) if ranges.resized_crop else (0.0, 0.0, num_mels, num_frames)
    masks = shared if ranges.shared_masks else rng
    most_mels, most_frames = min(ranges.frequency_mask, num_mels), num_frames // MOST_MASKED
    return AugmentDraw(
        partner,
        mix_ratio,
        box,
        [_draw_mask(most_mels, num_mels, masks) for _ in range(ranges.num_masks)],
        [_draw_mask(min(ranges.time_mask, most_frames), num_frames, masks) for _ in range(ranges.num_masks)],
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


def mixed(values: Tensor, partner: Tensor, ratio: Tensor) -> Tensor:
    """Mixes each clip, or its labels, linearly with another one of its batch (mixup).

    Args:
        values: Waveforms (B, S), log-mel spectrograms (B, F, T) or targets (B, C).
        partner: Place in the batch of the other clip (B,).
        ratio: Its share (B,), from 0 to 1.
    """
    return torch.lerp(values, values[partner], ratio.reshape(-1, *[1] * (values.ndim - 1)))


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
    """Sets bands of mels and runs of frames of each clip to zero, the mean (SpecAugment).

    Args:
        log_mel: Normalised (B, F, T).
        frequency_masks: First mel and number of mels of each band (B, M, 2).
        time_masks: First frame and number of frames of each run (B, M, 2).
    """
    masked = _inside(frequency_masks, log_mel.shape[1])[:, :, None]
    masked = masked | _inside(time_masks, log_mel.shape[2])[:, None]
    return log_mel.masked_fill(masked, 0.0)


def _inside(spans: Tensor, size: int) -> Tensor:
    """Which of ``size`` places (B, size) lie within any of each clip's spans (B, M, 2)."""
    place = torch.arange(size, device=spans.device)
    return ((place >= spans[..., :1]) & (place < spans.sum(dim=-1, keepdim=True))).any(dim=1)


def zero_beyond(log_mel: Tensor, num_frames: Tensor) -> Tensor:
    """Normalised log-mel (B, F, T) with zeros beyond each clip's frames (B,)."""
    frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
    return log_mel * (frames < num_frames[:, None])[:, None]
