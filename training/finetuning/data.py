"""Batches of labelled clips for fine-tuning, and whole clips for evaluation.

Shapes: B clips, S samples, F mels, T frames, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2d_hub.audio import open_audio
from m2d_hub.config import EncoderConfig, FrontendConfig
from m2d_hub.model import M2D
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.nn.patchout import (
    KeptColumns,
    KeptTokens,
    draw_patchout,
    draw_rows_dropped,
    stack_patchout,
)
from m2d_hub.windows import Windows

from ..data.annotations import AudioFile
from ..data.crops import CropPlan, crop_waveform
from ..data.entries import Entry
from ..data.sampling import SampleKey, StepSampler
from ..evaluation.labelled import Subset
from ..runs.loader import read_by_workers
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

CLIPS_AT_ONCE = 128  # whole clips in memory in evaluation


@dataclass(frozen=True)
class FinetuneSample:
    """One clip, cropped, with what is to be done with it."""

    waveform: np.ndarray  # (S,), with the context of its first and last frame
    num_frames: int  # T
    target: Tensor  # (C,)
    draw: AugmentDraw
    kept: KeptColumns | None


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

    def to(self, device: torch.device) -> FinetuneBatch:
        """The same batch on another device."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return FinetuneBatch(**moved, kept=self.kept and self.kept.to(device))


def crop_plan(config: FinetuneConfig, frontend: FrontendConfig, encoder: EncoderConfig) -> CropPlan:
    """The part to cut out of each clip, and what becomes of a shorter one."""
    return CropPlan(
        frontend,
        config.crop_frames or encoder.input_size[1],
        short_clips=config.short_clips,
        fades=True,
        from_start=config.crop_from_start,
    )


class FinetuneDataset(Dataset):
    """Crops of a part's clips, drawn by SampleKey."""

    def __init__(
        self,
        part: Subset,
        config: FinetuneConfig,
        frontend: FrontendConfig,
        encoder: EncoderConfig,
        seed: int,
    ):
        """Plans the crops.

        Args:
            part: Training clips.
            config: The run.
            frontend: Of the model.
            encoder: Of the model, its window already fitted.
            seed: Of this training.
        """
        self.part, self.config, self.encoder, self.seed = part, config, encoder, seed
        self.plan = crop_plan(config, frontend, encoder)
        self.windows = Windows.of(encoder)

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: SampleKey) -> FinetuneSample:
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        crop = crop_waveform(Entry(self.part.files[key.index]), self.plan, rng)
        frontend = self.plan.frontend
        num_frames = frontend.num_complete_frames(len(crop.values))
        number, place = divmod(key.position, self.config.batch_size)
        batch = BatchRandomness((self.seed, key.epoch, number, 1), self.config.batch_size, place)
        draw = draw_augmentation(self.config.augmentation, frontend.n_mels, num_frames, rng, batch)
        kept = self._draw_kept(num_frames, rng, batch) if self.config.patchout_ratio else None
        return FinetuneSample(crop.values, num_frames, self.part.target(key.index), draw, kept)

    def _draw_kept(self, num_frames: int, rng: np.random.Generator, batch: BatchRandomness) -> KeptColumns:
        num_freq, ratio = self.encoder.grid[0], self.config.patchout_ratio
        rows_dropped = draw_rows_dropped(num_freq, ratio, batch.rng())
        return draw_patchout(num_freq, self.windows.count(num_frames), ratio, rows_dropped, rng)

    def stack(self, samples: list[FinetuneSample]) -> FinetuneBatch:
        """Stacks samples to a batch as long as the longest of them."""
        waveform = torch.zeros(len(samples), max(len(sample.waveform) for sample in samples))
        for row, sample in zip(waveform, samples, strict=True):
            row[: len(sample.waveform)] = torch.from_numpy(sample.waveform)
        draws = [sample.draw for sample in samples]
        most_frames = max(sample.num_frames for sample in samples)
        num_windows, num_time = (
            len(self.windows.plan(most_frames)),
            self.windows.fitted(most_frames).window_tokens,
        )
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
            kept=stack_patchout(kept, num_windows, num_time) if kept else None,
        )


@torch.no_grad()
def augmented(
    batch: FinetuneBatch, frontend: LogMelFrontend, config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch: mixup, normalisation, SpecAugment, resized crop, in this order.

    Args:
        batch: On the device of the training.
        frontend: Of the model.
        config: Says which augmentations there are.

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
    log_mel = zero_beyond(frontend.normalise(log_mel), batch.num_frames)
    if config.frequency_mask or config.time_mask:
        log_mel = spec_augment(log_mel, batch.frequency_masks, batch.time_masks)
    if config.resized_crop:
        log_mel = resized_crops(log_mel, batch.num_frames, batch.crop_boxes)
    return log_mel, targets


def build_train_loader(
    dataset: FinetuneDataset, sampler: StepSampler, num_workers: int
) -> Iterable[FinetuneBatch]:
    """Batches of ``sampler``, read by ``num_workers`` processes, or by this one."""
    return read_by_workers(dataset, num_workers, batch_sampler=sampler, collate_fn=dataset.stack)


class WholeClips(Dataset):
    """Waveforms (S,) of files, or of parts of them, as inference reads them, or their beginnings."""

    def __init__(self, files: Sequence[AudioFile], sample_rate: int, plan: CropPlan | None):
        self.files, self.sample_rate, self.plan = files, sample_rate, plan

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        (clip,) = open_audio(self.files[index], self.sample_rate, None)
        waveform = torch.cat(list(clip.blocks()))
        return waveform if self.plan is None else torch.from_numpy(self.plan.beginning(waveform.numpy()))


def clips_to_score(files: Sequence[AudioFile], model: M2D, config: FinetuneConfig) -> Iterable[list[Tensor]]:
    """Lists of waveforms (S,) that clips are scored by, in the files' order: whole ones, or crops."""
    plan = crop_plan(config, model.config.frontend, model.config.encoder) if config.crop_test else None
    clips = WholeClips(files, model.sample_rate, plan)
    return read_by_workers(clips, config.num_workers, prefetch=1, batch_size=CLIPS_AT_ONCE, collate_fn=list)
