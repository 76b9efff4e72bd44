"""Mean and standard deviation of a list's log-mel values, measured on random crops (paper, section IV-A)."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

from .crops import CropPlan, crop_spectrogram, crop_waveform
from .entries import Entry
from .manifest import Manifest, Statistics
from .skipped import SkippedClip, refuse_too_many

MAX_CROPS = 5000  # one per clip
MIN_STD = 1e-3  # of log-mel values; digital silence has the same value everywhere

logger = logging.getLogger(__name__)


def moments(log_mel: Tensor) -> np.ndarray:
    """Return count, sum and sum of squares of values of any shape (3,), float64; those of parts add up."""
    values = log_mel.double()
    return np.array([values.numel(), float(values.sum()), float(values.square().sum())])


def mean_and_std(moments: np.ndarray, name: str) -> tuple[float, float]:
    """Return mean and standard deviation of all values of a list.

    Raises:
        ConfigError: All values are the same, as of silence.
    """
    mean, mean_square = (moments[1:] / moments[0]).tolist()
    std = math.sqrt(max(mean_square - mean**2, 0.0))
    if std < MIN_STD:
        raise ConfigError(f"{name}: all clips hold one value, such as silence: nothing can be learned.")
    return mean, std


def measure_statistics(
    manifest: Manifest, plan: CropPlan, crops: int = MAX_CROPS, seed: int = 0
) -> Statistics:
    """Measure mean and standard deviation of the log-mel values of audio files or spectrograms.

    Clips shorter than a crop count with their own frames; padding is not measured.

    Args:
        manifest: The list.
        plan: How crops are taken; ``short_clips`` is ignored.
        crops: Maximum number of clips, with one crop per clip.
        seed: Seed of the draw of clips and crops.

    Raises:
        AudioError: More than half of the clips cannot be read.
        ConfigError: All clips are silent.
    """
    rng = np.random.default_rng(seed)
    plan = replace(plan, short_clips="own")
    drawn = rng.permutation(len(manifest.entries))[:crops]
    total = np.zeros(3)
    frontend = LogMelFrontend(plan.frontend)
    unread: list[SkippedClip] = []
    for index in drawn:
        entry = manifest.entries[index]
        try:
            total += moments(_log_mel_crop(manifest, entry, plan, frontend, rng))
        except AudioError as error:
            unread.append(SkippedClip(entry.row, str(entry), str(error)))
    if unread:
        refuse_too_many(manifest.name, len(unread), len(drawn), unread[0])
    mean, std = mean_and_std(total, manifest.name)
    logger.info("%s: log-mel mean %.3f, std %.3f, of %d crops", manifest.name, mean, std, len(drawn))
    return Statistics(mean, std, plan.frontend.sample_rate)


@torch.no_grad()
def _log_mel_crop(
    manifest: Manifest, entry: Entry, plan: CropPlan, frontend: LogMelFrontend, rng: np.random.Generator
) -> Tensor:
    if manifest.kind == "spectrogram":
        log_mel = torch.from_numpy(crop_spectrogram(entry, plan, rng).values)
    else:
        waveform = torch.from_numpy(crop_waveform(entry, plan, rng).values)
        log_mel = frontend.log_mel_block(waveform[None])
    return frontend.levelled(log_mel)
