"""Level of log-mel windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MIN_LEVEL = math.log(3.75e-7)  # mean mel power of white noise at -70 dBFS
_DB_PER_NEPER = 10 / math.log(10)  # of power


def normalise_level(log_mel: Tensor, num_frames: Tensor | None, range_db: float | None) -> Tensor:
    """Subtract the level of each window, and limit its values to ``range_db`` below that level.

    Quiet and loud copies of a recording then have the same values, and mel bands without content do not
    depend on the resampler or on faint noise. Windows below about -70 dBFS count as silent: their gain is
    limited.

    Args:
        log_mel: (..., F, T), the natural logarithm of mel power.
        num_frames: Frames that are audio (...,); None for all T.
        range_db: Decibels below the mean power of a window; None returns ``log_mel`` unchanged.
    """
    if range_db is None:
        return log_mel
    num_mels, length = log_mel.shape[-2:]
    if num_frames is None:
        total, count = log_mel.logsumexp(dim=(-2, -1)), log_mel.new_full((), num_mels * length)
    else:
        is_audio = torch.arange(length, device=log_mel.device) < num_frames[..., None]
        total = log_mel.where(is_audio[..., None, :], -torch.inf).logsumexp(dim=(-2, -1))
        count = (num_frames * num_mels).to(log_mel)
    level = (total - count.log()).clamp(min=_MIN_LEVEL)[..., None, None]
    return torch.logaddexp(log_mel - level, log_mel.new_full((), -range_db / _DB_PER_NEPER))
