"""Waveform to frames in tensor operations only, without loops or branches that depend on the audio.

This module processes all windows of a batch at once, as ``torch.export``, ONNX and transformers require;
:meth:`m2d_hub.M2D.forward` processes window by window. Windows have one fixed length. Tokens of the last
window after the end of the clip are masked in attention, which gives the numbers of the shorter window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.audio.inputs import scaled
from m2d_hub.config import EncoderConfig, FrontendConfig
from m2d_hub.nn.encoder import Encoder, mask_of_tokens, tokens_to_frames
from m2d_hub.nn.level import normalise_level
from m2d_hub.windows import Windows, reflected


class WindowedEncoder(nn.Module):
    """Log-mel filters, windowing, and the encoder.

    Shapes: B clips, S samples, F mels, K windows, W frames of a window, p frames of a token, T tokens along
    time, N_F tokens along frequency, D width.

    Attributes:
        stft_filters: Cosines and sines of the windowed Fourier transform (2·bins, 1, window samples).
        mel_filters: (F, bins).
    """

    stft_filters: Tensor
    mel_filters: Tensor

    def __init__(self, frontend: FrontendConfig, encoder: EncoderConfig):
        """Build with random weights, and with zero filters to load into."""
        super().__init__()
        self.frontend_config = frontend
        num_bins = frontend.window_samples // 2 + 1
        self.register_buffer(
            "stft_filters", torch.zeros(2 * num_bins, 1, frontend.window_samples, dtype=torch.float32)
        )
        self.register_buffer("mel_filters", torch.zeros(frontend.n_mels, num_bins, dtype=torch.float32))
        self.encoder = Encoder(encoder)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WindowedEncoder:
        """Move or cast weights; the filters are only moved, since the spectrogram stays in float32."""
        filters = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, exact in filters.items():
            moved = self.get_buffer(name)
            if moved.dtype is not exact.dtype:
                setattr(self, name, exact.to(moved.device))
        return self

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode a batch of waveforms.

        Args:
            waveform: (B, S) float at the frontend's sample rate.
            lengths: Number of samples of each clip (B,); later samples are ignored. None for all S.

        Returns:
            Features (B, T, N_F·D), zero after the end of each clip, and the mask (B, T), True for audio.
        """
        windows, time_mask = self._cut(waveform, lengths)
        return _joined(self.encoder.frames(windows, self._attention_mask(time_mask)), time_mask)

    def layers(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the input of the first block and the output of every block, the last one normalised.

        Returns:
            Features (1 + L, B, T, N_F·D), and the mask (B, T), True for audio.
        """
        windows, time_mask = self._cut(waveform, lengths)
        tokens = self.encoder.embed(windows)
        encoded = self.encoder.encode_layers(tokens, self._attention_mask(time_mask))[:, :, 1:]
        layers = torch.cat([tokens[None], encoded])
        return _joined(tokens_to_frames(layers, self.encoder.config.grid[0]), time_mask)

    def _cut(self, waveform: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return windows of all clips (B·K, 1, F, W) and the mask of their tokens along time (B, K, N_T)."""
        if lengths is None:
            lengths = waveform.new_zeros(waveform.shape[:1], dtype=torch.int64) + waveform.shape[1]
        window_frames = self.encoder.config.input_size[1]
        num_frames = lengths // self.frontend_config.hop_samples + 1  # (B,)
        num_windows = _as_size((num_frames.max() + window_frames - 1) // window_frames)
        device_type = waveform.device.type
        is_cast = torch.is_autocast_enabled(device_type)  # spectrograms are always float32
        with torch.autocast(device_type, enabled=False) if is_cast else contextlib.nullcontext():
            log_mel = self._log_mel(waveform, lengths, num_windows * window_frames)
            windows = log_mel.unflatten(-1, (num_windows, window_frames)).transpose(1, 2)  # (B, K, F, W)
            first_frames = torch.arange(num_windows, device=waveform.device) * window_frames
            window_lengths = (num_frames[:, None] - first_frames).clamp(0, window_frames)  # (B, K)
            windows = self._normalise(windows, window_lengths)
        time_mask = Windows.of(self.encoder.config).token_mask(num_frames, num_windows)
        return windows.flatten(0, 1)[:, None], time_mask

    def _attention_mask(self, time_mask: Tensor) -> Tensor:
        """Expand a mask of tokens along time (B, K, N_T) to all tokens of each window (B·K, N)."""
        return mask_of_tokens(time_mask.flatten(0, 1), self.encoder.config.grid[0])

    def _log_mel(self, waveform: Tensor, lengths: Tensor, num_frames: int) -> Tensor:
        """Return log-mel frames (B, F, T); frames after the end of a clip are invalid."""
        config = self.frontend_config
        padded = reflected(scaled(waveform, "the waveform"), lengths, num_frames, config)
        projected = F.conv1d(padded[:, None], self.stft_filters.float(), stride=config.hop_samples)
        power = projected.square().unflatten(1, (2, -1)).sum(dim=1)  # (B, bins, T)
        return (torch.matmul(self.mel_filters.float(), power) + config.epsilon).log()

    def _normalise(self, windows: Tensor, num_frames: Tensor) -> Tensor:
        """Normalise log-mel windows (B, K, F, W), zero after their number of frames (B, K)."""
        config = self.frontend_config
        windows = normalise_level(windows, num_frames, config.range_db, config.level_frames)
        is_audio = torch.arange(windows.shape[-1], device=windows.device) < num_frames[..., None]
        return (windows - config.mean) / config.std * is_audio[..., None, :]


def _as_size(value: Tensor) -> int:
    """Return a size that ``torch.export`` keeps as one symbol, so that it can prove derived sizes."""
    size: int = value.item()  # type: ignore[assignment]  # int() would make it constant in a graph
    torch._check(size >= 1)
    return size


def _joined(features: Tensor, time_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the windows of each clip, up to the end of the longest clip.

    Args:
        features: (…, B·K, N_T, N_F·D).
        time_mask: Tokens of the windows that are audio (B, K, N_T).

    Returns:
        Features (…, B, T, N_F·D), zero after the end of each clip, and the mask (B, T), True for audio.
    """
    features = features.unflatten(-3, time_mask.shape[:2]).flatten(-3, -2)
    mask = time_mask.flatten(1)  # (B, K·N_T)
    num_tokens = _as_size(mask.sum(dim=1).max())
    torch._check(num_tokens <= mask.shape[1])
    return (features * mask[..., None])[..., :num_tokens, :], mask[:, :num_tokens]
