"""Background noise mixed into log-mel spectrograms."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mix_noise(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Mixes two log-mel spectrograms in the power domain (paper, equation 5).

    Args:
        clean: Log-mel spectrogram (..., F, T), centred by the mean of its own data set.
        noise: Log-mel spectrogram of the same shape, centred by the mean of the noise's data set.
        ratio: Share η of the noise, from 0 to 1.

    Returns:
        log((1 − η)·exp(clean) + η·exp(noise)), of the same shape.
    """
    if ratio <= 0.0:
        return clean
    if ratio >= 1.0:
        return noise
    return torch.logaddexp(clean + math.log1p(-ratio), noise + math.log(ratio))
