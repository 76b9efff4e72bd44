"""Batches of labelled pictures, augmented and mixed by timm, and whole pictures for evaluation.

Shapes: B batch, H height, W width, C classes.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.annotations import AudioFile
from ..data.entries import Entry
from ..data.images import IMAGENET_MEAN, IMAGENET_STD, read_image
from ..data.sampling import SampleKey
from ..evaluation.labelled import Subset
from .config import FinetuneConfig
from .image_config import ImageConfig

TEST_CROP_SHARE = 0.875  # of a picture's shorter side: 224 of 256 pixels (masked autoencoders)
NORMALISED: dict[str, Any] = {
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "interpolation": "bicubic",
}


@dataclass(frozen=True)
class ImageSample:
    """One picture, augmented."""

    pixels: Tensor  # (3, H, W)
    label: int
    key: SampleKey


@dataclass(frozen=True)
class ImageBatch:
    """Samples stacked along the batch axis, and mixed."""

    pixels: Tensor  # (B, 3, H, W)
    targets: Tensor  # (B, C)
    seed: int  # of what the network draws

    def to(self, device: torch.device) -> ImageBatch:
        """The same batch on another device."""
        pixels, targets = (tensor.to(device, non_blocking=True) for tensor in (self.pixels, self.targets))
        return ImageBatch(pixels, targets, self.seed)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[int]:
    """Seeds the generators of Python, numpy and torch, which timm draws from, for as long as it lasts.

    Args:
        key: What the draws hang on.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.random.default_generator.manual_seed(seed)
            yield seed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class ImageDataset(Dataset):
    """Pictures of a part, augmented, drawn by SampleKey."""

    def __init__(self, part: Subset, config: FinetuneConfig, size: Sequence[int], seed: int):
        """Prepares timm's augmentation.

        Args:
            part: Training pictures.
            config: The run.
            size: Height and width that the model takes.
            seed: Of this training.
        """
        from timm.data import create_transform

        self.part, self.config, self.seed = part, config, seed
        images = self.images = config.images or ImageConfig()
        self.transform = create_transform(
            (3, *size),
            is_training=True,
            color_jitter=None,
            auto_augment=images.rand_augment,
            re_prob=images.erase_share,
            re_mode="pixel",
            **NORMALISED,
        )

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: SampleKey) -> ImageSample:
        picture = read_image(Entry(self.part.files[key.index]))
        with seeded(self.seed, key.epoch, key.position):
            pixels = self.transform(picture)
        return ImageSample(pixels, self.part.labels[key.index][0], key)

    def stack(self, samples: list[ImageSample]) -> ImageBatch:
        """Stacks samples, and mixes each with another one by mixup or CutMix, alike for the whole batch."""
        from timm.data.mixup import Mixup, mixup_target

        pixels, size = torch.stack([sample.pixels for sample in samples]), self.part.num_classes
        labels = torch.tensor([sample.label for sample in samples])
        smoothing, ratios = self.images.label_smoothing, (self.config.mixup_ratio, self.images.cutmix_ratio)
        first = samples[0].key
        with seeded(self.seed, first.epoch, first.position, 1) as seed:
            if any(ratios):
                mix = Mixup(*ratios, label_smoothing=smoothing, num_classes=size)
                pixels, targets = mix(pixels, labels)
            else:
                targets = mixup_target(labels, size, smoothing=smoothing)
        return ImageBatch(pixels, targets, seed)


class WholeImages(Dataset):
    """Middles of pictures, as they are evaluated."""

    def __init__(self, files: Sequence[AudioFile], size: Sequence[int]):
        from timm.data import create_transform

        self.files = files
        self.transform = create_transform((3, *size), crop_pct=TEST_CROP_SHARE, **NORMALISED)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(read_image(Entry(os.fspath(self.files[index]))))
