"""Batches of labelled clips for fine-tuning, and whole clips for evaluation.

Shapes: B clips, S samples, F mels, T frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2d_hub.audio import open_audio
from m2d_hub.config import EncoderConfig, FrontendConfig
from m2d_hub.errors import AudioError
from m2d_hub.model import M2D
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.windows import Windows

from ..data.annotations import AudioFile
from ..data.crops import CropPlan, crop_waveform
from ..data.entries import Entry
from ..data.sampling import SampleKey, StepSampler
from ..data.skipped import SkippedClip
from ..evaluation.clip_encoder import read_clip
from ..evaluation.labelled import Subset
from ..runs.processes import read_by_workers
from .augment import (
    AugmentDraw,
    BatchRandomness,
    draw_augmentation,
    mixed,
    resized_crops,
    spec_augment,
    zero_beyond,
)
from .config import FinetuneConfig
from .patchout import KeptTokens, draw_marked_rows, draw_patchout, stack_patchout

CLIPS_AT_ONCE = 32  # whole clips in memory in evaluation; long ones are read when they are encoded
MAX_UNREADABLE = 8  # clips in a row

Sample = TypeVar("Sample")


def read_or_replace(
    subset: Subset, index: int, read: Callable[[int], Sample]
) -> tuple[Sample, list[SkippedClip]]:
    """Read a clip or, if it cannot be read any more, one of the clips after it; return the skipped ones too.

    Raises:
        AudioError: Too many clips in a row cannot be read.
    """
    skipped: list[SkippedClip] = []
    for offset in range(min(MAX_UNREADABLE, len(subset))):
        position = (index + offset) % len(subset)
        try:
            return read(position), skipped
        except AudioError as error:
            skipped.append(SkippedClip(subset.rows[position], str(subset.files[position]), str(error)))
    last = skipped[-1]
    raise AudioError(f"{len(skipped)} clips in a row cannot be read, lastly row {last.row}: {last.error}")


@dataclass(frozen=True)
class FinetuneSample:
    """One clip, cropped, with its augmentation."""

    waveform: np.ndarray  # (S,), with the context of its first and last frame
    num_frames: int  # T
    target: Tensor  # (C,)
    draw: AugmentDraw
    kept: np.ndarray | None  # (N_F, N_T) bool, tokens that structured patchout keeps
    skipped: list[SkippedClip] = field(default_factory=list)


@dataclass
class FinetuneBatch:
    """Samples stacked along the batch axis; shorter ones are padded."""

    waveform: Tensor  # (B, S)
    num_frames: Tensor  # (B,)
    targets: Tensor  # (B, C)
    partners: Tensor  # (B,)
    mix_ratios: Tensor  # (B,)
    crop_boxes: Tensor  # (B, 4)
    frequency_masks: Tensor  # (B, M, 2)
    time_masks: Tensor  # (B, M, 2)
    kept: KeptTokens | None
    skipped: list[SkippedClip] = field(default_factory=list)  # clips that could not be read

    def to(self, device: torch.device) -> FinetuneBatch:
        """Return a copy on another device."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return FinetuneBatch(**moved, kept=self.kept and self.kept.to(device), skipped=self.skipped)


def crop_plan(config: FinetuneConfig, frontend: FrontendConfig, encoder: EncoderConfig) -> CropPlan:
    """Return how clips are cropped, and shorter ones lengthened."""
    return CropPlan(
        frontend,
        config.crop_frames or encoder.input_size[1],
        short_clips=config.short_clips,
        fades=config.crop_from_start and config.short_clips == "repeat",
        from_start=config.crop_from_start,
    )


class FinetuneDataset(Dataset):
    """Crops of clips, drawn by SampleKey."""

    def __init__(
        self,
        subset: Subset,
        config: FinetuneConfig,
        frontend: FrontendConfig,
        encoder: EncoderConfig,
        seed: int,
    ):
        """Plan the crops."""
        self.subset, self.config, self.encoder, self.seed = subset, config, encoder, seed
        self.plan = crop_plan(config, frontend, encoder)
        self.windows = Windows.of(encoder)

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, key: SampleKey) -> FinetuneSample:
        sample, skipped = read_or_replace(self.subset, key.index, lambda index: self._sample(key, index))
        return replace(sample, skipped=skipped)

    def _sample(self, key: SampleKey, index: int) -> FinetuneSample:
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        crop = crop_waveform(Entry(self.subset.files[index]), self.plan, rng)
        frontend = self.plan.frontend
        num_frames = frontend.num_complete_frames(len(crop.values))
        batch = BatchRandomness((self.seed, key.epoch, key.first, 1), key.count, key.position - key.first)
        draw = draw_augmentation(self.config, frontend.n_mels, num_frames, rng, batch)
        kept = self._draw_kept(num_frames, rng, batch) if self.config.patchout_ratio else None
        return FinetuneSample(crop.values, num_frames, self.subset.target(index), draw, kept)

    def _draw_kept(self, num_frames: int, rng: np.random.Generator, batch: BatchRandomness) -> np.ndarray:
        num_freq, ratio = self.encoder.grid[0], self.config.patchout_ratio
        rows, drops_marked = draw_marked_rows(num_freq, ratio, batch.rng()), self.config.patchout_drops_marked
        num_time = self.windows.count(num_frames)
        return draw_patchout(num_freq, num_time, ratio, rows, rng, drops_marked=drops_marked)

    def stack(self, samples: list[FinetuneSample]) -> FinetuneBatch:
        """Stack samples to a batch as long as the longest of them."""
        waveform = torch.zeros(len(samples), max(len(sample.waveform) for sample in samples))
        for row, sample in zip(waveform, samples, strict=True):
            row[: len(sample.waveform)] = torch.from_numpy(sample.waveform)
        draws = [sample.draw for sample in samples]
        max_frames = max(sample.num_frames for sample in samples)
        num_windows = len(self.windows.plan(max_frames))
        window_tokens = self.windows.fitted(max_frames).window_tokens
        kept = [sample.kept for sample in samples if sample.kept is not None]
        return FinetuneBatch(
            waveform,
            torch.tensor([sample.num_frames for sample in samples]),
            torch.stack([sample.target for sample in samples]),
            partners=torch.tensor([draw.partner for draw in draws]),
            mix_ratios=torch.tensor([draw.mix_ratio for draw in draws]),
            crop_boxes=torch.tensor([draw.crop_box for draw in draws], dtype=torch.float32),
            frequency_masks=torch.tensor([draw.frequency_masks for draw in draws]),
            time_masks=torch.tensor([draw.time_masks for draw in draws]),
            kept=stack_patchout(kept, num_windows, window_tokens) if kept else None,
            skipped=[clip for sample in samples for clip in sample.skipped],
        )

    def batches(self, sampler: StepSampler) -> Iterable[FinetuneBatch]:
        """Return the batches of ``sampler``, read by ``num_workers`` processes, or by this one."""
        return read_by_workers(self, self.config.num_workers, batch_sampler=sampler, collate_fn=self.stack)


@torch.no_grad()
def augmented(
    batch: FinetuneBatch, frontend: LogMelFrontend, config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """Apply mixup, normalisation, SpecAugment and resized crop to a batch, in this order.

    Returns:
        Log-mel (B, F, T), zero beyond each clip's end, and targets (B, C).
    """
    waveform, targets = batch.waveform, batch.targets
    if config.mixup_ratio:
        targets = mixed(targets, batch.partners, batch.mix_ratios)
    if config.mixup_ratio and config.mixed == "waveform":
        waveform = mixed(waveform, batch.partners, batch.mix_ratios)
    log_mel = frontend.log_mel_block(waveform)
    if config.mixup_ratio and config.mixed == "log-mel":
        log_mel = mixed(log_mel, batch.partners, batch.mix_ratios)
    log_mel = zero_beyond(frontend.normalise(log_mel, batch.num_frames), batch.num_frames)
    if config.frequency_mask or config.time_mask:
        log_mel = spec_augment(log_mel, batch.frequency_masks, batch.time_masks)
    if config.resized_crop:
        log_mel = resized_crops(log_mel, batch.num_frames, batch.crop_boxes)
    return log_mel, targets


class WholeClips(Dataset):
    """Waveforms (S,) of files, or files that are too long to hold, or the beginnings of files."""

    def __init__(self, files: Sequence[AudioFile], sample_rate: int, plan: CropPlan | None):
        self.files, self.sample_rate, self.plan = files, sample_rate, plan

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | AudioFile:
        if self.plan is None:
            return read_clip(self.files[index], self.sample_rate)
        blocks, num_samples = list[Tensor](), 0
        for block in open_audio(self.files[index], self.sample_rate)[0].blocks():
            blocks.append(block)
            num_samples += len(block)
            if num_samples >= self.plan.num_samples:
                break
        return torch.from_numpy(self.plan.beginning(torch.cat(blocks).numpy()))


def clips_to_score(
    files: Sequence[AudioFile], model: M2D, config: FinetuneConfig
) -> Iterable[list[Tensor | AudioFile]]:
    """Return batches of the clips to evaluate, in the files' order: whole ones, or crops from their start."""
    plan = crop_plan(config, model.config.frontend, model.config.encoder) if config.crop_test else None
    clips = WholeClips(files, model.sample_rate, plan)
    return read_by_workers(clips, config.num_workers, prefetch=1, batch_size=CLIPS_AT_ONCE, collate_fn=list)
