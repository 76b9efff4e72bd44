"""Augmentation of spectrograms in fine-tuning: mixup, SpecAugment, random resized crops.

Random values are drawn on the CPU, clip by clip, and applied to whole batches on any device. Shapes: B clips,
F mels, T frames, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import FinetuneConfig

SIZE_SHARE = (0.6, 1.5)  # of a resized crop along either axis, as in BYOL-A
CANVAS_SHARE = 1.5  # of the clip's frames; the surroundings of the clip are the mean value


@dataclass(frozen=True)
class AugmentDraw:
    """Random choices for one clip."""

    partner: int  # index in the batch of the clip that is mixed in
    mix_ratio: float  # share of that clip, from 0 to 1
    crop_box: tuple[float, float, float, float]  # first mel, first frame, mels, frames; may exceed the clip
    frequency_masks: list[tuple[int, int]]  # first mel and number of mels of each band
    time_masks: list[tuple[int, int]]  # first frame and number of frames of each run


@dataclass(frozen=True)
class BatchRandomness:
    """A seed shared by the clips of a batch, from which each draws the same numbers."""

    seed: tuple[int, ...]
    size: int  # clips of the batch
    index: int  # of this clip

    def rng(self) -> np.random.Generator:
        """Return a new generator, equal for all clips of the batch."""
        return np.random.default_rng(self.seed)


def draw_augmentation(
    config: FinetuneConfig, num_mels: int, num_frames: int, rng: np.random.Generator, batch: BatchRandomness
) -> AugmentDraw:
    """Draw the augmentation of one clip.

    Mixup's share follows Beta(``mixup_ratio``, ``mixup_ratio``), and its partners are a random permutation of
    the batch (arXiv:1710.09412). The box is that of BYOL-A's random resized crops (paper, section IV-B).
    Widths of masks are uniform from 0 to their maximum, as in SpecAugment; a time mask covers at most half of
    the clip.
    """
    shared = batch.rng()
    partner = int(shared.permutation(batch.size)[batch.index])
    mix_ratio = float(rng.beta(config.mixup_ratio, config.mixup_ratio)) if config.mixup_ratio else 0.0
    box = _draw_box(num_mels, num_frames, rng) if config.resized_crop else (0.0, 0.0, num_mels, num_frames)
    masks = shared if config.shared_masks else rng
    max_mels, max_frames = min(config.frequency_mask, num_mels), min(config.time_mask, num_frames // 2)
    bands = [_draw_mask(max_mels, num_mels, masks) for _ in range(config.num_masks)]
    runs = [_draw_mask(max_frames, num_frames, masks) for _ in range(config.num_masks)]
    return AugmentDraw(partner, mix_ratio, box, bands, runs)


def _draw_box(num_mels: int, num_frames: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    canvas = int(num_frames * CANVAS_SHARE)
    mels = min(max(1, int(rng.uniform(*SIZE_SHARE) * num_mels)), num_mels)
    frames = min(max(1, int(rng.uniform(*SIZE_SHARE) * num_frames)), canvas)
    first_mel = int(rng.integers(num_mels - mels + 1))
    first_frame = int(rng.integers(canvas - frames + 1)) - (canvas - num_frames) // 2
    return first_mel, first_frame, mels, frames


def _draw_mask(max_width: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    width = int(rng.integers(max_width + 1))
    return int(rng.integers(size - width + 1)), width


def mixed(values: Tensor, partner: Tensor, ratio: Tensor) -> Tensor:
    """Mix each clip, or its labels, linearly with another one of its batch (mixup).

    Args:
        values: Waveforms (B, S), log-mel spectrograms (B, F, T) or targets (B, C).
        partner: Index in the batch of the other clip (B,).
        ratio: Its share (B,), from 0 to 1.
    """
    return torch.lerp(values, values[partner], ratio.reshape(-1, *[1] * (values.ndim - 1)))


def resized_crops(log_mel: Tensor, num_frames: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box of each clip and resize it, bicubically, to the clip's size (BYOL-A).

    The corners of box and clip are aligned, and nothing beyond the box is read.

    Args:
        log_mel: Normalised (B, F, T), zero beyond each clip's end, and regarded as zero around it.
        num_frames: Frames of each clip (B,).
        boxes: First mel, first frame, mels and frames of each box (B, 4).

    Returns:
        (B, F, T), zero beyond each clip's end.
    """
    _, num_mels, max_frames = log_mel.shape
    surrounded, crops = F.pad(log_mel, (max_frames, max_frames)), torch.zeros_like(log_mel)
    for clip, (box, length) in enumerate(zip(boxes.long().tolist(), num_frames.tolist(), strict=True)):
        mel, frame, mels, frames = box[0], box[1] + max_frames, box[2], box[3]
        part = surrounded[clip, mel : mel + mels, frame : frame + frames]
        crops[clip, :, :length] = F.interpolate(
            part[None, None], (num_mels, length), mode="bicubic", align_corners=True
        )[0, 0]
    return crops


def spec_augment(log_mel: Tensor, frequency_masks: Tensor, time_masks: Tensor) -> Tensor:
    """Set bands of mels and runs of frames of each clip to zero, the mean (SpecAugment).

    Args:
        log_mel: Normalised (B, F, T).
        frequency_masks: First mel and number of mels of each band (B, M, 2).
        time_masks: First frame and number of frames of each run (B, M, 2).
    """
    masked = _inside(frequency_masks, log_mel.shape[1])[:, :, None]
    masked = masked | _inside(time_masks, log_mel.shape[2])[:, None]
    return log_mel.masked_fill(masked, 0.0)


def _inside(spans: Tensor, size: int) -> Tensor:
    """Return which of ``size`` positions (B, size) lie within any of each clip's spans (B, M, 2)."""
    position = torch.arange(size, device=spans.device)
    return ((position >= spans[..., :1]) & (position < spans.sum(dim=-1, keepdim=True))).any(dim=1)


def zero_beyond(log_mel: Tensor, num_frames: Tensor) -> Tensor:
    """Set a normalised log-mel (B, F, T) to zero beyond each clip's frames (B,)."""
    frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
    return log_mel * (frames < num_frames[:, None])[:, None]
