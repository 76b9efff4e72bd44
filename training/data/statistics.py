"""Mean and standard deviation of a list's log-mel values, measured on random crops (paper, section IV-A)."""

from __future__ import annotations

import logging

import numpy as np
import torch

from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

from .crops import CropPlan, crop_spectrogram, crop_waveform
from .entry import Entry
from .left_out import LeftOut, refuse_too_many
from .manifest import Manifest, Statistics

CROPS = 5000  # at most; one of each clip that is drawn
LEAST_STD = 1e-3  # of log-mel values; digital silence has the same value everywhere

logger = logging.getLogger(__name__)


def measure_statistics(manifest: Manifest, plan: CropPlan, crops: int = CROPS, seed: int = 0) -> Statistics:
    """Measures a list of audio files or spectrograms.

    Args:
        manifest: The list.
        plan: What is cut out of each clip.
        crops: Of as many clips, or of all where there are fewer.
        seed: Of the draw of clips and crops.

    Raises:
        AudioError: More than half of the clips cannot be read.
        ConfigError: All are silent.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(manifest.entries))[:crops]
    totals = np.zeros(3)  # values, their sum, the sum of their squares
    frontend = LogMelFrontend(plan.frontend)
    unread: list[LeftOut] = []  # left out where their turn comes
    for index in drawn:
        entry = manifest.entries[index]
        try:
            totals += _sums(manifest, entry, plan, frontend, rng)
        except AudioError as error:
            unread.append(LeftOut(entry.row, str(entry), str(error)))
    if unread:
        refuse_too_many(manifest.name, len(unread), len(drawn), unread[0])
    count, total, squares = totals
    mean = total / count
    std = float(np.sqrt(max(squares / count - mean**2, 0.0)))
    if std < LEAST_STD:
        raise ConfigError(
            f"{manifest.name}: all of {len(drawn):,} clips hold one value, such as silence: there is nothing "
            "to learn from."
        )
    logger.info("%s: log-mel mean %.3f, std %.3f, of %d crops", manifest.name, mean, std, len(drawn))
    return Statistics(float(mean), std, plan.frontend.sample_rate)


def _sums(
    manifest: Manifest, entry: Entry, plan: CropPlan, frontend: LogMelFrontend, rng: np.random.Generator
) -> np.ndarray:
    """Number, sum and sum of squares of one crop's log-mel values."""
    if manifest.kind == "spectrogram":
        values = torch.from_numpy(crop_spectrogram(entry, plan, rng).values)
    else:
        waveform = torch.from_numpy(crop_waveform(entry, plan, rng).values)
        with torch.no_grad():
            values = frontend.log_mel_block(waveform[None])
    values = values.double()
    return np.array([values.numel(), values.sum().item(), values.square().sum().item()])
