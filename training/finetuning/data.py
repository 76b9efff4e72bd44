"""Batches of labelled clips for fine-tuning, and whole clips for evaluation.

Shapes: B clips, S samples, F mels, T frames, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from m2d_hub.audio import open_audio
from m2d_hub.config import EncoderConfig, FrontendConfig
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.crops import CropPlan, crop_waveform
from ..data.entry import Entry
from ..data.parts import AudioFile
from ..data.sampling import SampleKey, StepSampler
from ..evaluation.labelled import Part
from .augment import (
    AugmentDraw,
    KeptColumns,
    KeptTokens,
    draw_augmentation,
    draw_patchout,
    mix_log_mels,
    mix_targets,
    resized_crops,
    spec_augment,
    stack_patchout,
    zero_beyond,
)
from .config import FinetuneConfig
from .model import WindowLayout

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
    mix_ratios: Tensor  # (B,)
    crop_boxes: Tensor  # (B, 4)
    frequency_masks: Tensor  # (B, 2)
    time_masks: Tensor  # (B, 2)
    kept: KeptTokens | None

    def to(self, device: torch.device) -> FinetuneBatch:
        """The same batch on another device."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        kept = self.kept and KeptTokens(self.kept.ids.to(device), self.kept.mask.to(device))
        return FinetuneBatch(**moved, kept=kept)


class FinetuneDataset(Dataset):
    """Random crops of a part's clips, drawn by SampleKey; a shorter clip keeps its own length."""

    def __init__(
        self, part: Part, config: FinetuneConfig, frontend: FrontendConfig, encoder: EncoderConfig, seed: int
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
        num_frames = config.crop_frames or encoder.input_size[1]
        self.plan = CropPlan(frontend, num_frames, repeat_short=False, keep_short=True)

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: SampleKey) -> FinetuneSample:
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        crop = crop_waveform(Entry(self.part.files[key.index]), self.plan, rng)
        frontend = self.plan.frontend
        num_frames = (len(crop.values) - frontend.window_samples) // frontend.hop_samples + 1
        draw = draw_augmentation(self.config.augmentation, frontend.n_mels, num_frames, rng)
        kept = None
        if self.config.patchout_ratio:
            num_time = self._layout(num_frames).count_heard(num_frames)
            kept = draw_patchout(self.encoder.grid[0], num_time, self.config.patchout_ratio, rng)
        return FinetuneSample(crop.values, num_frames, self.part.targets[key.index], draw, kept)

    def stack(self, samples: list[FinetuneSample]) -> FinetuneBatch:
        """Stacks samples to a batch as long as the longest of them."""
        waveform = torch.zeros(len(samples), max(len(sample.waveform) for sample in samples))
        for row, sample in zip(waveform, samples, strict=True):
            row[: len(sample.waveform)] = torch.from_numpy(sample.waveform)
        draws = [sample.draw for sample in samples]
        layout = self._layout(max(sample.num_frames for sample in samples))
        kept = [sample.kept for sample in samples if sample.kept is not None]
        return FinetuneBatch(
            waveform,
            torch.tensor([sample.num_frames for sample in samples]),
            torch.stack([sample.target for sample in samples]),
            mix_ratios=torch.tensor([draw.mix_ratio for draw in draws]),
            crop_boxes=torch.tensor([draw.crop_box for draw in draws], dtype=torch.float32),
            frequency_masks=torch.tensor([draw.frequency_mask for draw in draws]),
            time_masks=torch.tensor([draw.time_mask for draw in draws]),
            kept=stack_patchout(kept, layout.num_windows, layout.num_time) if kept else None,
        )

    def _layout(self, num_frames: int) -> WindowLayout:
        return WindowLayout.of(num_frames, self.encoder.input_size[1], self.encoder.patch_size[1])


@torch.no_grad()
def augmented(
    batch: FinetuneBatch, frontend: LogMelFrontend, config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch: mixup, normalisation, resized crop, SpecAugment, in this order.

    Args:
        batch: On the device of the training.
        frontend: Of the model.
        config: Says which augmentations there are.

    Returns:
        Log-mel (B, F, T), zero beyond each clip's end, and targets (B, C).
    """
    log_mel, targets = frontend.log_mel_block(batch.waveform), batch.targets
    if config.mixup_ratio:
        log_mel = mix_log_mels(log_mel, batch.num_frames, batch.mix_ratios)
        targets = mix_targets(targets, batch.mix_ratios)
    log_mel = zero_beyond(frontend.normalise(log_mel), batch.num_frames)
    if config.resized_crop:
        log_mel = resized_crops(log_mel, batch.num_frames, batch.crop_boxes)
    if config.frequency_mask or config.time_mask:
        log_mel = spec_augment(log_mel, batch.frequency_masks, batch.time_masks)
    return log_mel, targets


def build_train_loader(
    dataset: FinetuneDataset, sampler: StepSampler, num_workers: int
) -> Iterable[FinetuneBatch]:
    """Batches of ``sampler``, read by ``num_workers`` processes, or by this one."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=dataset.stack,
        prefetch_factor=4 if num_workers else None,
    )


class WholeClips(Dataset):
    """Waveforms (S,) of files, or of parts of them, as inference reads them."""

    def __init__(self, files: list[AudioFile], sample_rate: int):
        self.files, self.sample_rate = files, sample_rate

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        (clip,) = open_audio(self.files[index], self.sample_rate, None)
        return torch.cat(list(clip.blocks()))


def whole_clips(files: list[AudioFile], sample_rate: int, num_workers: int) -> Iterable[list[Tensor]]:
    """Lists of whole waveforms (S,), in the files' order."""
    return DataLoader(
        WholeClips(files, sample_rate),
        batch_size=CLIPS_AT_ONCE,
        num_workers=num_workers,
        collate_fn=list,
        prefetch_factor=1 if num_workers else None,
    )
