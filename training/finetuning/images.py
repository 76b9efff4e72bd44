"""Fine-tuning of an image model as masked autoencoders are, on timm's parts (paper, appendix A).

Shapes: B batch, H height, W width, C classes.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from m2d_hub.checks import require
from m2d_hub.hub import load_model

from ..data.annotations import AudioFile
from ..data.entries import Entry
from ..data.images import IMAGENET_MEAN, IMAGENET_STD, read_image
from ..data.sampling import SampleKey, StepSampler
from ..data.skipped import SkippedClip
from ..evaluation.labelled import Subset
from ..runs.processes import autocast, random_lock, read_by_workers
from .config import FinetuneConfig, ImageConfig
from .data import read_or_replace

ARCHITECTURE = "vit_base_patch16_224"  # of timm; its sizes are replaced by the model's
TEST_CROP_SHARE = 0.875  # of an image's shorter side: 224 of 256 pixels (masked autoencoders)
NORMALISED: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}


@contextlib.contextmanager
def seeded(*key: int, devices: Sequence[torch.device] = ()) -> Iterator[int]:
    """Seed the global generators of Python, numpy and torch, which timm uses, and restore them at the end."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    with random_lock, torch.random.fork_rng(devices=devices):
        states = random.getstate(), np.random.get_state()
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.random.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device.index or 0].manual_seed(seed)
            yield seed
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@dataclass(frozen=True)
class ImageSample:
    """One augmented image."""

    pixels: Tensor  # (3, H, W)
    label: int
    key: SampleKey
    skipped: list[SkippedClip] = field(default_factory=list)


@dataclass(frozen=True)
class ImageBatch:
    """Samples stacked along the batch axis, and mixed."""

    pixels: Tensor  # (B, 3, H, W)
    targets: Tensor  # (B, C)
    seed: int  # of the network's random numbers
    skipped: list[SkippedClip] = field(default_factory=list)  # images that could not be read

    def to(self, device: torch.device) -> ImageBatch:
        """Return a copy on another device."""
        pixels, targets = (tensor.to(device, non_blocking=True) for tensor in (self.pixels, self.targets))
        return replace(self, pixels=pixels, targets=targets)


class ImageDataset(Dataset):
    """Augmented images of a subset, drawn by SampleKey."""

    def __init__(self, subset: Subset, config: FinetuneConfig, size: Sequence[int], seed: int):
        """Prepare timm's augmentation."""
        from timm.data import create_transform

        self.subset, self.config, self.seed = subset, config, seed
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
        return len(self.subset)

    def __getitem__(self, key: SampleKey) -> ImageSample:
        sample, skipped = read_or_replace(self.subset, key.index, lambda index: self._sample(key, index))
        return replace(sample, skipped=skipped)

    def _sample(self, key: SampleKey, index: int) -> ImageSample:
        image = read_image(Entry(self.subset.files[index]))
        with seeded(self.seed, key.epoch, key.position):
            pixels = self.transform(image)
        return ImageSample(pixels, self.subset.labels[index][0], key)

    def stack(self, samples: list[ImageSample]) -> ImageBatch:
        """Stack samples, and mix each with another one by mixup or CutMix, the same for the whole batch."""
        from timm.data.mixup import Mixup, mixup_target

        pixels, size = torch.stack([sample.pixels for sample in samples]), self.subset.num_classes
        labels = torch.tensor([sample.label for sample in samples])
        smoothing, ratios = self.images.label_smoothing, (self.config.mixup_ratio, self.images.cutmix_ratio)
        first = samples[0].key
        with seeded(self.seed, first.epoch, first.position, 1) as seed:
            if any(ratios):
                mix = Mixup(*ratios, label_smoothing=smoothing, num_classes=size)
                pixels, targets = mix(pixels, labels)
            else:
                targets = mixup_target(labels, size, smoothing=smoothing)
        return ImageBatch(pixels, targets, seed, [clip for sample in samples for clip in sample.skipped])


class WholeImages(Dataset):
    """Centre crops of images for evaluation."""

    def __init__(self, files: Sequence[AudioFile], size: Sequence[int]):
        from timm.data import create_transform

        self.files = files
        self.transform = create_transform((3, *size), crop_pct=TEST_CROP_SHARE, **NORMALISED)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(read_image(Entry(self.files[index])))


class ImageClassifier(nn.Module):
    """timm's vision transformer with the mean over all patches; same methods as AudioClassifier.

    Attributes:
        backbone: The model that is trained, saved and evaluated.
    """

    def __init__(
        self, backbone: nn.Module, arguments: dict[str, Any], labels: tuple[str, ...], config: FinetuneConfig
    ):
        """Wrap a model."""
        super().__init__()
        self.backbone, self.arguments, self.labels, self.config = backbone, arguments, labels, config

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Blocks of the transformer."""
        return self.backbone.blocks  # type: ignore[return-value]

    def forward(self, pixels: Tensor, seed: int | None = None) -> Tensor:
        """Return logits (B, C); ``seed`` chooses the residual branches that are dropped in training."""
        if seed is None:
            return self.backbone(pixels)
        with seeded(seed, devices=[pixels.device] if pixels.device.type == "cuda" else ()):
            return self.backbone(pixels)

    def batches(self, subset: Subset, sampler: StepSampler, seed: int) -> Iterable[ImageBatch]:
        """Return the training batches of ``sampler``."""
        dataset = ImageDataset(subset, self.config, self.arguments["img_size"], seed)
        return read_by_workers(
            dataset, self.config.num_workers, batch_sampler=sampler, collate_fn=dataset.stack, pinned=True
        )

    def inputs(self, batch: ImageBatch) -> tuple[tuple[Any, ...], Tensor]:
        """Return the arguments of :meth:`forward` for a batch, and its targets (B, C)."""
        return (batch.pixels, batch.seed), batch.targets

    def logits(self, files: Sequence[AudioFile]) -> Iterator[Tensor]:
        """Yield logits (n, C) of the centre of each image on the CPU."""
        images = WholeImages(files, self.arguments["img_size"])
        device = next(self.parameters()).device
        batches = read_by_workers(
            images, self.config.num_workers, batch_size=self.config.batch_size, pinned=True
        )
        for pixels in batches:
            with autocast(device, self.config.precision):
                logits = self(pixels.to(device, non_blocking=True))
            yield logits.float().cpu()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Map logits (N, C) to probabilities."""
        return logits.softmax(dim=-1)

    def save(self, folder: Path) -> None:
        """Write the model for ``timm.create_model("local-dir:…", pretrained=True)``."""
        from timm.models._hub import save_for_hf

        names = {"label_names": list(self.labels)}
        save_for_hf(self.backbone, str(folder), names, model_args=self.arguments, safe_serialization=True)


def build_image_classifier(
    name: str, config: FinetuneConfig, labels: tuple[str, ...], seed: int
) -> ImageClassifier:
    """Load an image model into timm's vision transformer with a new head, as masked autoencoders do.

    The final norm is replaced by a new one after the mean over patches, and positions are trained. ``seed``
    draws the head's first weights.

    Raises:
        ConfigError: The model is not an image model.
    """
    import timm

    images = config.images or ImageConfig()
    source = load_model(name, device="cpu")
    encoder = source.config.encoder
    require(
        encoder.in_channels == 3,
        f"{name} is an audio model ({encoder.in_channels} channel); images need a model of 3 channels, such "
        "as the result of the pre-training preset m2d-image.",
    )
    arguments = {
        "img_size": list(encoder.input_size),
        "patch_size": list(encoder.patch_size),
        "embed_dim": encoder.embed_dim,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "num_classes": len(labels),
        "global_pool": "avg",
    }
    preprocessing = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": TEST_CROP_SHARE}
    with seeded(seed):
        backbone = timm.create_model(
            ARCHITECTURE, drop_path_rate=images.drop_path, pretrained_cfg_overlay=preprocessing, **arguments
        )
        if config.head_std is not None:
            nn.init.trunc_normal_(backbone.head.weight, std=config.head_std)
    weights = source.encoder.state_dict()
    weights = {key: value for key, value in weights.items() if not key.startswith("norm.")}
    backbone.load_state_dict(weights, strict=False)
    return ImageClassifier(backbone, arguments, labels, config)
