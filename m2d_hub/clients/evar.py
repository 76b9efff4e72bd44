"""EVAR (eval-audio-repr): the runtime that its M2D wrapper expects.

>>> from m2d_hub.clients.evar import RuntimeM2D
>>> runtime = RuntimeM2D(weight_file="m2d-as-0.7")
>>> frames = runtime.encode(waveforms)  # (B, T, N_F·D)
"""

from __future__ import annotations

import os
from numbers import Real
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.nn.encoder import frames_to_tokens
from m2d_hub.pretrained.registry import DEFAULT_MODEL
from m2d_hub.windows import Windows

# EVAR's names of the spectrogram's settings, which the weights fix
_SPECTROGRAM = {
    "sample_rate": "sample_rate",
    "n_fft": "window_samples",
    "window_size": "window_samples",
    "hop_size": "hop_samples",
    "n_mels": "n_mels",
    "f_min": "f_min_hz",
    "f_max": "f_max_hz",
}


class RuntimeM2D(nn.Module):
    """An M2D model under EVAR's names, differentiable.

    Attributes:
        cfg: The given settings, completed with ``feature_d``, sizes and statistics of the model.
        backbone: The encoder; its names in checkpoints begin with ``backbone.``.
    """

    def __init__(
        self,
        cfg: Any = None,
        weight_file: str | os.PathLike[str] | None = None,
        training_mask: float | None = None,
        encoder_only: bool | None = None,
        dur_frames: int | None = None,
        num_classes: int | None = None,
        freeze_embed: bool | None = None,
        flat_features: bool | None = None,
    ):
        """Load a model on the CPU; EVAR moves it.

        Args:
            cfg: EVAR's settings, an object with attributes. They apply to each of the arguments below that
                is None, and to ``mean`` and ``std``.
            weight_file: As for :func:`m2d_hub.load_model`; None for ``m2d-mini``.
            training_mask: Share of the tokens, from 0 to below 1, that structured patchout drops in training
                mode. Above 0, features are tokens (``flat_features``) and a head takes their mean.
            encoder_only: Drop the head.
            dur_frames: Number of frames of a window; None: as pre-trained.
            num_classes: Number of classes of a new head.
            freeze_embed: Freeze the weights of the patch embedding.
            flat_features: Return tokens (B, N_F·T, D) instead of frames (B, T, N_F·D); a head must take them.

        Raises:
            ConfigError: ``cfg`` states another spectrogram than the weights were trained with, or
                ``training_mask`` is not such a share.
        """
        super().__init__()
        self.cfg = SimpleNamespace() if cfg is None else cfg

        def setting(value: Any, name: str) -> Any:
            return getattr(self.cfg, name, None) if value is None else value

        self.training_mask = setting(training_mask, "training_mask") or 0.0
        if not isinstance(self.training_mask, Real) or not 0 <= float(self.training_mask) < 1:
            raise ConfigError(f"training_mask must be from 0 to below 1, got {self.training_mask!r}.")
        name = setting(weight_file, "weight_file") or DEFAULT_MODEL
        classes = setting(num_classes, "num_classes")
        statistics = {key: setting(None, key) for key in ("mean", "std")}
        model = load_model(name, device="cpu", num_classes=classes, **statistics)
        if frames := setting(dur_frames, "dur_frames"):
            model.set_window(frames * model.config.frontend.hop_s)
        if self.training_mask and classes is not None:
            model.set_head(classes, features="tokens")
        self.frontend, self.backbone = model.frontend, model.encoder
        self.head = None if setting(encoder_only, "encoder_only") else model.head
        self.flat_features = bool(setting(flat_features, "flat_features") or self.training_mask)
        if setting(freeze_embed, "freeze_embed"):
            self.backbone.patch_embed.requires_grad_(False)
        self._complete_settings(str(name))

    def _complete_settings(self, name: str) -> None:
        """Write the settings that the model fixes into ``cfg``, which EVAR reads again."""
        frontend, encoder = self.frontend.config, self.backbone.config
        for key, field in _SPECTROGRAM.items():
            given, expected = getattr(self.cfg, key, None), getattr(frontend, field)
            if given not in (None, expected):
                raise ConfigError(
                    f"cfg.{key} is {given}, but {name} was trained with {expected}; use that value, or other "
                    "weights."
                )
            setattr(self.cfg, key, expected)
        layers = getattr(self.cfg, "output_layers", [-1])  # which EVAR stacks; None: all
        width = encoder.embed_dim if self.flat_features else encoder.frame_dim
        self.cfg.feature_d = width * (encoder.depth if layers is None else len(layers))
        self.cfg.weight_file = name
        self.cfg.input_size, self.cfg.patch_size = encoder.input_size, encoder.patch_size
        self.cfg.mean, self.cfg.std = frontend.mean, frontend.std

    def to_feature(self, wave: Tensor) -> Tensor:
        """Map waveforms (B, S) to log-mel spectrograms (B, 1, F, T) before normalisation."""
        return self.frontend.log_mel(wave)[:, None]

    def normalize_batch(self, log_mel: Tensor) -> Tensor:
        """Standardise log-mel values with the statistics of the pre-training set."""
        return self.frontend.normalise(log_mel)

    def to_normalized_spec(self, wave: Tensor) -> Tensor:
        """Map waveforms (B, S) to normalised log-mel spectrograms (B, 1, F, T)."""
        return self.normalize_batch(self.to_feature(wave))

    def encode_lms(self, log_mel: Tensor, return_layers: bool = False) -> Tensor | list[Tensor]:
        """Encode normalised log-mel spectrograms (B, 1, F, T), window by window.

        Returns:
            Frames (B, T, N_F·D), or a list of them, one per block. In training mode with ``training_mask``,
            the tokens that remain (B, n, D).
        """
        layers = self._layers(log_mel)
        return layers if return_layers else layers[-1]

    def encode(self, wave: Tensor) -> Tensor:
        """Map waveforms (B, S) to frames (B, T, N_F·D)."""
        return self._layers(self.to_normalized_spec(wave))[-1]

    def forward(self, wave: Tensor) -> Tensor:
        """Return logits of the head, or frames without a head."""
        features = self.encode(wave)
        return features if self.head is None else self.head(self.head.clip_input(features.mean(dim=1)))

    def _layers(self, log_mel: Tensor) -> list[Tensor]:
        if self.training and self.training_mask > 0:
            return self._thinned_layers(log_mel)
        windows = Windows.of(self.backbone.config).cut(log_mel)
        encoded = [self.backbone.layer_frames(window) for _, window in windows]  # (L, B, N_T, N_F·D) each
        if self.flat_features:
            encoded = [frames_to_tokens(frames, self.backbone.config.grid[0]) for frames in encoded]
        return list(torch.cat(encoded, dim=2).unbind(0))

    def _thinned_layers(self, log_mel: Tensor) -> list[Tensor]:
        """Return the tokens of all layers (B, n, D) that remain after dropping rows and columns of patches.

        As in PaSST's structured patchout, columns make up for what the rows leave of ``training_mask``.
        """
        num_freq, ratio = self.backbone.config.grid[0], self.training_mask
        rows_dropped = min(int(torch.rand(()) * (ratio * num_freq + 1)), num_freq - 1)
        rows = torch.randperm(num_freq)[rows_dropped:].sort().values
        layers = []
        for window, frames in Windows.of(self.backbone.config).cut(log_mel):
            columns_dropped = max(0, round(window.num_tokens * (ratio - rows_dropped / num_freq)))
            first = min(columns_dropped, window.num_tokens - 1)
            columns = torch.randperm(window.num_tokens)[first:].sort().values
            ids = (rows[:, None] * window.num_tokens + columns).flatten().to(log_mel.device)
            tokens = self.backbone.embed(frames)[:, ids]
            layers.append(self.backbone.encode_layers(tokens)[:, :, 1:])
        return list(torch.cat(layers, dim=2).unbind(0))
