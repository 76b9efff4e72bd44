"""EVAR (eval-audio-repr): the runtime that its M2D wrapper expects.

>>> from m2d_hub.clients.evar import RuntimeM2D
>>> runtime = RuntimeM2D(weight_file="m2d-as-0.7")
>>> frames = runtime.encode(waveforms)  # (B, T, N_F·D)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.nn.clap import Clap
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
            encoder_only: Drop the head.
            dur_frames: Number of frames of a window; None: as pre-trained.
            num_classes: Number of classes of a new head.
            freeze_embed: Freeze the weights of the patch embedding.
            flat_features: Return tokens (B, N_F·T, D) instead of frames (B, T, N_F·D).

        Raises:
            ConfigError: ``cfg`` has no attributes, a ``training_mask``, or another spectrogram than that of
                the weights.
        """
        super().__init__()
        self.cfg = SimpleNamespace() if cfg is None else cfg
        if not hasattr(self.cfg, "__dict__"):
            raise ConfigError(
                f"cfg must have its settings as attributes, like EVAR's EasyDict, got a {type(cfg).__name__}."
            )

        def setting(value: Any, name: str) -> Any:
            return getattr(self.cfg, name, None) if value is None else value

        if setting(None, "training_mask"):
            raise ConfigError(
                "cfg.training_mask is not supported; set it to 0, or fine-tune by m2d-train finetune --set "
                "patchout_ratio."
            )
        name = setting(weight_file, "weight_file") or DEFAULT_MODEL
        classes = setting(num_classes, "num_classes")
        statistics = {key: setting(None, key) for key in ("mean", "std")}
        model = load_model(name, device="cpu", num_classes=classes, **statistics)
        if frames := setting(dur_frames, "dur_frames"):
            model.set_window(frames * model.config.frontend.hop_s)
        self.frontend, self.backbone, self.clap = model.frontend, model.encoder, model.clap
        self.head = None if setting(encoder_only, "encoder_only") else model.head
        self.flat_features = bool(setting(flat_features, "flat_features"))
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
            Frames (B, T, N_F·D), or a list of them, one per block.
        """
        frames = self._layer_frames(log_mel)
        layers = [self._flat(layer) if self.flat_features else layer for layer in frames]
        return layers if return_layers else layers[-1]

    def encode(self, wave: Tensor) -> Tensor:
        """Map waveforms (B, S) to frames (B, T, N_F·D)."""
        frames = self._layer_frames(self.to_normalized_spec(wave))[-1]
        return self._flat(frames) if self.flat_features else frames

    def forward(self, wave: Tensor) -> Tensor:
        """Return logits of the head, or frames without a head."""
        if self.head is None:
            return self.encode(wave)
        frames = self._layer_frames(self.to_normalized_spec(wave))[-1]
        return self.head(self.head.clip_input(frames.mean(dim=1)))

    def encode_clap_audio(self, wave: Tensor) -> Tensor:
        """Map waveforms (B, S) into the space shared with text (B, E)."""
        return self.project_audio(self.encode(wave))

    def project_audio(self, features: Tensor) -> Tensor:
        """Map the output of :meth:`encode` into the space shared with text (B, E).

        Raises:
            ConfigError: The weights have no projections.
        """
        tokens = features if self.flat_features else self._flat(features)
        return self._required_clap().project_audio(tokens)

    def encode_clap_text(self, batch_text: Sequence[str]) -> Tensor:
        """Map texts into the space shared with audio (B, E).

        Raises:
            ConfigError: The weights have no projections, or transformers is not installed.
        """
        return self._required_clap().encode_text(list(batch_text))

    def _required_clap(self) -> Clap:
        if self.clap is None:
            raise ConfigError(
                f"{self.cfg.weight_file} has no projections into a text space. Give 'm2d-clap-2024'."
            )
        return self.clap

    def _layer_frames(self, log_mel: Tensor) -> Tensor:
        """Return the frames of all layers (L, B, T, N_F·D)."""
        windows = Windows.of(self.backbone.config).cut(log_mel)
        return torch.cat([self.backbone.layer_frames(window) for _, window in windows], dim=2)

    def _flat(self, frames: Tensor) -> Tensor:
        return frames_to_tokens(frames, self.backbone.config.grid[0])
