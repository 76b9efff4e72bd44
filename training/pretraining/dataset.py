"""Data sets of pre-training clips and the loader that makes batches of them.

Shapes: B batch, S samples, C channels, F mels, T frames, N_T time frames of tokens, K classes or features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2d_hub.errors import AudioError, ConfigError

from ..data.crops import Crop, CropPlan, crop_spectrogram, crop_waveform
from ..data.entries import Entry
from ..data.images import crop_image
from ..data.manifest import Manifest
from ..data.masking import draw_mask
from ..data.sampling import SampleKey, StepSampler
from ..data.skipped import NamedSkip, SkippedClip
from ..data.stored_features import caption_features, frame_features
from ..runs.processes import read_by_workers
from .augment import augmented, overlapped
from .config import AugmentConfig, PretrainConfig

MAX_BROKEN_IN_A_ROW = 100  # draws for one clip: where half of the list can be read, one of them can
Read = TypeVar("Read")
NOISE_STREAM, AUGMENT_STREAM, CAPTION_STREAM = 1, 2, 3  # separate their random numbers from those of the clip


@dataclass
class Sample:
    """One clip, cropped and masked."""

    values: np.ndarray  # waveform (S,), log-mel spectrogram (F, T), or image (C, height, width)
    visible_ids: np.ndarray
    masked_ids: np.ndarray
    noise: np.ndarray | None = None  # as values
    target: np.ndarray | None = None  # of the offline network: labels (K,) or per-frame features (N_T, K)
    caption: str = ""
    left_out: list[NamedSkip] = field(default_factory=list)  # clips drawn before this one


@dataclass
class Batch:
    """Samples stacked along the batch axis."""

    values: Tensor
    visible_ids: Tensor  # (B, n_visible)
    masked_ids: Tensor  # (B, n_masked)
    noise: Tensor | None
    target: Tensor | None
    captions: list[str]
    left_out: list[NamedSkip]  # clips drawn before these

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {
            name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()
        }
        return dataclasses.replace(self, **moved)


def stack_samples(samples: list[Sample]) -> Batch:
    """Stack samples to a batch."""

    def stack(name: str) -> Any:
        arrays = [getattr(sample, name) for sample in samples]
        return None if arrays[0] is None else torch.from_numpy(np.stack(arrays))

    return Batch(
        **{name: stack(name) for name in ("values", "visible_ids", "masked_ids", "noise", "target")},
        captions=[sample.caption for sample in samples],
        left_out=[clip for sample in samples for clip in sample.left_out],
    )


class PretrainDataset(Dataset):
    """Crops, masks and offline targets of clips, drawn by SampleKey.

    A clip that cannot be read is replaced by another of the list and named in ``left_out`` of the sample.
    """

    def __init__(
        self,
        config: PretrainConfig,
        manifest: Manifest,
        noise: Manifest | None = None,
        classes: tuple[str, ...] = (),
    ):
        if noise is not None and noise.kind != manifest.kind:
            raise ConfigError(
                f"{manifest.name} holds {manifest.kind} files but the noise {noise.name} {noise.kind} files: "
                "give the same kind for both."
            )
        self.config, self.manifest, self.noise = config, manifest, noise
        self.class_index = {name: index for index, name in enumerate(classes)}
        if config.offline is not None and config.offline.kind == "labels":
            _check_labels(manifest, self.class_index)
        num_frames = config.input_size[1]
        self.plan = CropPlan(config.frontend, num_frames, short_clips=config.short_clips)
        self.noise_plan = CropPlan(config.frontend, num_frames, short_clips="repeat")

    def __len__(self) -> int:
        return len(self.manifest.entries)

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = np.random.default_rng([self.config.seed, key.epoch, key.position])
        config = self.config
        mask = draw_mask(config.mask_kind, config.grid, config.mask_ratio, rng, config.mask_run_frames)
        left_out: list[NamedSkip] = []
        caption_share = np.random.default_rng([config.seed, key.epoch, key.position, CAPTION_STREAM]).random()

        def read(entry: Entry) -> tuple[Entry, Crop, np.ndarray | None]:
            crop = self._crop(self.manifest, entry, self.plan, rng)
            return entry, crop, self._target(entry, crop, caption_share)

        entry, crop, target = _draw(self.manifest, key.index, read, rng, left_out)
        values = crop.values
        if config.augment is not None and self.manifest.kind == "audio":
            values, target = self._augmented(config.augment, key, values, target, left_out)
        return Sample(
            values,
            mask.visible_ids,
            mask.masked_ids,
            noise=self._noise(key, left_out),
            target=target,
            caption=entry.drawn_caption(caption_share),
            left_out=left_out,
        )

    def _augmented(
        self,
        augment: AugmentConfig,
        key: SampleKey,
        waveform: np.ndarray,
        target: np.ndarray | None,
        left_out: list[NamedSkip],
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return an augmented clip (S,) and its labels (K,), which are those of both clips of an overlap."""
        rng = np.random.default_rng([self.config.seed, key.epoch, key.position, AUGMENT_STREAM])
        if rng.random() < augment.overlap:

            def read(entry: Entry) -> tuple[np.ndarray, np.ndarray | None]:
                crop = self._crop(self.manifest, entry, self.plan, rng)
                return crop.values, self._target(entry, crop)

            index = int(rng.integers(len(self.manifest.entries)))
            second, second_target = _draw(self.manifest, index, read, rng, left_out)
            waveform = overlapped(waveform, second, rng)
            if target is not None and second_target is not None:
                target = np.maximum(target, second_target)  # unknown (NaN) if one of them is
        waveform, is_silent = augmented(waveform, augment, self.config.sample_rate, rng)
        return waveform, np.zeros_like(target) if is_silent and target is not None else target

    def _noise(self, key: SampleKey, left_out: list[NamedSkip]) -> np.ndarray | None:
        noise = self.noise
        if noise is None:
            return None
        rng = np.random.default_rng([self.config.seed, key.epoch, key.position, NOISE_STREAM])
        index = int(rng.integers(len(noise.entries)))
        return _draw(
            noise, index, lambda entry: self._crop(noise, entry, self.noise_plan, rng).values, rng, left_out
        )

    def _crop(self, manifest: Manifest, entry: Entry, plan: CropPlan, rng: np.random.Generator) -> Crop:
        if manifest.kind == "image":
            return Crop(crop_image(entry, self.config.input_size, rng), 0)
        if manifest.kind == "spectrogram":
            return crop_spectrogram(entry, plan, rng)
        return crop_waveform(entry, plan, rng)

    def _target(self, entry: Entry, crop: Crop, caption_share: float = 0.0) -> np.ndarray | None:
        offline = self.config.offline
        if offline is None:
            return None
        if offline.kind == "labels":
            unnamed = 0.0 if entry.labels else np.nan
            target = np.full(len(self.class_index), unnamed, dtype=np.float32)
            target[[self.class_index[label] for label in entry.labels]] = 1.0
            return target
        if not entry.features_path:
            return None
        if offline.kind == "text":
            return caption_features(entry, offline.text_dim, caption_share)
        tokens, patch_frames = self.config.grid[1], self.config.patch_size[1]
        return frame_features(entry, offline.dim, crop, tokens, patch_frames)


def _draw(
    manifest: Manifest,
    index: int,
    read: Callable[[Entry], Read],
    rng: np.random.Generator,
    left_out: list[NamedSkip],
) -> Read:
    """Read a clip, or others drawn instead; add those that cannot be read to ``left_out``.

    Raises:
        AudioError: Too many in a row cannot be read.
    """
    for _ in range(MAX_BROKEN_IN_A_ROW):
        entry = manifest.entries[index]
        try:
            return read(entry)
        except AudioError as error:
            left_out.append((manifest.name, SkippedClip(entry.row, str(entry), str(error))))
            index = int(rng.integers(len(manifest.entries)))
    raise AudioError(
        f"{MAX_BROKEN_IN_A_ROW} clips of {manifest.name} in a row cannot be read; the last: "
        f"{left_out[-1][1].error}"
    )


def _check_labels(manifest: Manifest, class_index: dict[str, int]) -> None:
    unknown = sorted({label for entry in manifest.entries for label in entry.labels} - set(class_index))
    if unknown:
        raise ConfigError(
            f"{manifest.name} has labels that are not classes of this run: {unknown[:5]}; "
            f"its {len(class_index)} classes are those of the training list."
        )


def build_loader(dataset: PretrainDataset, sampler: StepSampler, num_workers: int) -> Iterable[Batch]:
    """Yield batches of ``sampler``, read by ``num_workers`` processes or by this one."""
    return read_by_workers(dataset, num_workers, pinned=True, batch_sampler=sampler, collate_fn=stack_samples)
