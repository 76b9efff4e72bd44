"""Log-mel spectrogram on the device of the waveform, always in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.audio.inputs import scaled
from m2d_hub.config import FrontendConfig
from m2d_hub.io import plain_tensors
from m2d_hub.nn.level import normalise_level


class LogMelFrontend(nn.Module):
    """Normalised log-mel spectrogram, computed with nnAudio (paper, section IV-A).

    It has no parameters. The Hann window and the mel filters are built on first use on each device, so that a
    model can be created on the meta device and moved or cast without changing them.
    """

    def __init__(self, config: FrontendConfig):
        super().__init__()
        self.config = config
        self._mel_spectrograms: dict[torch.device, Any] = {}

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveform (B, S) to the normalised log-mel spectrogram (B, 1, F, T)."""
        return self.normalise(self.log_mel(waveform))[:, None]

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the natural logarithm of the mel power spectrogram, before normalisation.

        Args:
            waveform: (B, S) at ``config.sample_rate``, S >= 1; integers are scaled to [-1, 1).

        Returns:
            (B, F, S // hop + 1) float32. Edges are padded by reflection; very short waveforms are first
            padded with zeros.

        Raises:
            AudioError: The dtype of the waveform is not supported.
        """
        num_frames = self.config.num_frames(waveform.shape[-1])
        half = self.config.window_samples // 2
        waveform = F.pad(scaled(waveform, "the waveform"), (0, max(0, half + 1 - waveform.shape[-1])))
        padded = F.pad(waveform, (half, half), mode="reflect")
        return self.log_mel_block(padded)[..., :num_frames]

    def log_mel_block(self, padded: Tensor) -> Tensor:
        """Return log-mel frames of a waveform block that includes its context.

        Args:
            padded: (B, S); frame i is computed from samples i·hop … i·hop + window − 1.

        Returns:
            (B, F, (S − window) // hop + 1) float32.
        """
        spectrogram = self._mel_spectrogram(padded.device)
        with torch.autocast(padded.device.type, enabled=False):
            if self.config.transform == "fft":
                mel = spectrogram.mel_basis @ self._fft_power(padded.float())
            else:
                mel = spectrogram(padded.float())
            return (mel + self.config.epsilon).log()

    def normalise(self, log_mel: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Standardise log-mel values with the statistics of the pre-training set.

        Args:
            log_mel: (B, F, T). The level of blocks is normalised first if ``config.range_db`` is set.
            num_frames: Frames that are audio (B,); None for all T. Others do not count for the level.
        """
        return (self.levelled(log_mel, num_frames) - self.config.mean) / self.config.std

    def levelled(self, log_mel: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Return log-mel values with a normalised level, see :func:`normalise_level`."""
        return normalise_level(log_mel, num_frames, self.config.range_db, self.config.level_frames)

    def filters(self) -> tuple[Tensor, Tensor]:
        """Return the constants of the spectrogram as plain tensors on the CPU.

        Returns:
            Cosines and sines of the windowed Fourier transform (2·bins, 1, window samples), and the mel
            filters (F, bins).
        """
        module = self._mel_spectrogram(torch.device("cpu"))
        num_bins = self.config.window_samples // 2 + 1
        cosines, sines = (kernel.detach()[:num_bins] for kernel in (module.stft.wcos, module.stft.wsin))
        return torch.cat([cosines, sines]), module.mel_basis.detach().clone()

    def _fft_power(self, padded: Tensor) -> Tensor:
        """Return the power (B, bins, T) of windowed frames."""
        spectrum = torch.stft(
            padded,
            n_fft=self.config.window_samples,
            hop_length=self.config.hop_samples,
            window=torch.hann_window(self.config.window_samples, device=padded.device, dtype=torch.float32),
            center=False,
            return_complex=True,
        )
        return spectrum.real.square() + spectrum.imag.square()

    def _mel_spectrogram(self, device: torch.device) -> Any:
        if device not in self._mel_spectrograms:
            from nnAudio.features import MelSpectrogram

            config = self.config
            with plain_tensors():
                module = MelSpectrogram(
                    sr=config.sample_rate,
                    n_fft=config.window_samples,
                    win_length=config.window_samples,
                    hop_length=config.hop_samples,
                    n_mels=config.n_mels,
                    fmin=config.f_min_hz,
                    fmax=config.f_max_hz,
                    center=False,
                    power=2,
                    verbose=False,
                )
                self._mel_spectrograms[device] = module.to(device).eval()
        return self._mel_spectrograms[device]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mel_spectrograms": {}}
