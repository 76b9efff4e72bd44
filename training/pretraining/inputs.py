"""From a batch as the loader gives it to what the pre-training model takes, on the training device.

Shapes: B batch, S samples, C channels, F mels, T frames, N_T time frames of tokens, K classes or features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from m2d_hub.errors import ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.manifest import Kind
from .config import PretrainConfig
from .dataset import Batch
from .teachers import M2DTeacher, Teacher, TextTeacher


@dataclass(frozen=True)
class InputBuilder:
    """Log-mel, noise and standardisation of the inputs; the training signal of the offline network."""

    config: PretrainConfig
    kind: Kind
    frontend: LogMelFrontend
    noise_mean: float  # of the noise's log-mel values
    teacher: Teacher | TextTeacher | None = None

    @torch.no_grad()
    def log_mel(self, batch: Batch) -> Tensor:
        """Standardised inputs (B, C, F, T), with background noise where the batch has some."""
        if self.kind == "image":
            return batch.values
        clean = self._log_mel(batch.values)
        if batch.noise is None:
            return self.frontend.normalise(clean)[:, None]
        mean, std = self.frontend.config.mean, self.frontend.config.std
        noise = self._log_mel(batch.noise) - self.noise_mean
        return (mix_noise(clean - mean, noise, self.config.noise_ratio) / std)[:, None]

    @torch.no_grad()
    def offline_target(self, batch: Batch) -> Tensor | None:
        """Labels (B, K), features of the clean clips (B, N_T, K), or features of captions (B, K)."""
        if self.config.offline is None:
            return None
        if batch.signal is not None:
            return batch.signal
        if isinstance(self.teacher, TextTeacher):
            return self.teacher.encode_captions(batch.captions)
        if self.teacher is None:
            raise ConfigError(
                f"the offline network learns from {self.config.offline.kind}, but the data carries none and "
                "no teacher was given."
            )
        if self.kind == "audio":
            return self.teacher.encode(batch.values)
        if isinstance(self.teacher, M2DTeacher):
            return self.teacher.encode_log_mel(batch.values)
        raise ConfigError(f"this teacher needs waveforms, but the data holds {self.kind} files.")

    def _log_mel(self, values: Tensor) -> Tensor:
        return self.frontend.log_mel_block(values) if self.kind == "audio" else values


def mix_noise(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Mix two log-mel spectrograms in the power domain (paper, equation 5).

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
