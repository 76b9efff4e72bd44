"""Level of log-mel spectrograms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_LEVEL = math.log(3.75e-7)  # mean mel power of white noise at -70 dBFS
_DB_PER_NEPER = 10 / math.log(10)  # of power


def normalise_level(
    log_mel: Tensor, num_frames: Tensor | None, range_db: float | None, level_frames: int
) -> Tensor:
    """Subtract the level of each block of frames, and limit its values to ``range_db`` below that level.

    Quiet and loud copies of a recording then have the same values, mel bands without content do not depend on
    the resampler or on faint noise, and a loud sound does not change the frames before and after it. Blocks
    below about -70 dBFS count as silent: their gain is limited.

    Args:
        log_mel: (..., F, T), the natural logarithm of mel power.
        num_frames: Frames that are audio (...,); None for all T.
        range_db: Decibels below the mean power of a block; None returns ``log_mel`` unchanged.
        level_frames: Frames of a block; the last block may be shorter.
    """
    if range_db is None:
        return log_mel
    num_mels, length = log_mel.shape[-2:]
    blocks = F.pad(log_mel, (0, -length % level_frames), value=-torch.inf).unflatten(-1, (-1, level_frames))
    frames = torch.arange(blocks.shape[-2] * level_frames, device=log_mel.device)
    is_audio = frames < (length if num_frames is None else num_frames[..., None])
    is_audio = is_audio.unflatten(-1, (-1, level_frames))  # (..., K, level_frames)
    total = blocks.where(is_audio[..., None, :, :], -torch.inf).logsumexp(dim=(-3, -1))  # (..., K)
    count = is_audio.sum(dim=-1).clamp(min=1) * num_mels
    level = (total - count.log()).clamp(min=_MIN_LEVEL)[..., None, :, None]
    limited = torch.logaddexp(blocks - level, log_mel.new_full((), -range_db / _DB_PER_NEPER))
    return limited.flatten(-2)[..., :length]
