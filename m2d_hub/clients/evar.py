"""EVAR (eval-audio-repr): the runtime that its M2D wrapper looks for.

>>> from m2d_hub.clients.evar import RuntimeM2D
>>> runtime = RuntimeM2D(weight_file="m2d-as-0.7")
>>> frames = runtime.encode(waveforms)  # (B, T, N_F·D)
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.nn.encoder import frames_to_tokens
from m2d_hub.pretrained.registry import DEFAULT_MODEL
from m2d_hub.windows import Windows


class RuntimeM2D(nn.Module):
    """An M2D model behind EVAR's names, differentiable.

    Attributes:
        cfg: What was given, with the sizes and statistics of the model.
        backbone: The encoder; its names in checkpoints follow ``backbone.``.
    """

    def __init__(
        self,
        cfg: Any = None,
        weight_file: str | os.PathLike[str] | None = None,
        training_mask: float = 0.0,
        encoder_only: bool = False,
        dur_frames: int | None = None,
        num_classes: int | None = None,
        freeze_embed: bool | None = None,
        flat_features: bool | None = None,
    ):
        """Loads a model on the CPU; EVAR moves it.

        Args:
            cfg: EVAR's settings; ``weight_file`` is taken from there where it is not given.
            weight_file: What :func:`m2d_hub.load_model` takes; None for ``m2d-mini``.
            training_mask: Share of patches dropped while training; only 0 is known here.
            encoder_only: Drop the head.
            dur_frames: Frames of a window; None: as pre-trained.
            num_classes: Classes of a fresh head.
            freeze_embed: Keep the patch embedding's weights as they are.
            flat_features: Give tokens (B, N_F·T, D) rather than frames (B, T, N_F·D).

        Raises:
            ConfigError: ``training_mask`` is not 0.
        """
        super().__init__()
        if training_mask:
            raise ConfigError(
                f"training_mask must be 0, got {training_mask}; m2d-train finetune drops patches."
            )
        name = weight_file or getattr(cfg, "weight_file", None) or DEFAULT_MODEL
        model = load_model(name, device="cpu", num_classes=num_classes)
        if dur_frames is not None:
            model.set_window(dur_frames * model.config.frontend.hop_samples / model.sample_rate)
        self.frontend, self.backbone = model.frontend, model.encoder
        self.head = None if encoder_only else model.head
        self.flat_features = bool(flat_features)
        if freeze_embed:
            self.backbone.patch_embed.requires_grad_(False)
        config = model.config
        width = config.encoder.embed_dim if self.flat_features else config.encoder.frame_dim
        known = {"sample_rate": model.sample_rate, "feature_d": width, "weight_file": str(name)}
        known |= {"input_size": config.encoder.input_size, "patch_size": config.encoder.patch_size}
        known |= {"mean": config.frontend.mean, "std": config.frontend.std, "n_mels": config.frontend.n_mels}
        self.cfg = SimpleNamespace(**{**(vars(cfg) if hasattr(cfg, "__dict__") else {}), **known})

    def to_feature(self, wave: Tensor) -> Tensor:
        """Maps waveforms (B, S) to log-mel spectrograms (B, 1, F, T), not normalised."""
        return self.frontend.log_mel(wave)[:, None]

    def normalize_batch(self, log_mel: Tensor) -> Tensor:
        """Standardises log-mel values with the statistics of the pre-training set."""
        return self.frontend.normalise(log_mel)

    def to_normalized_spec(self, wave: Tensor) -> Tensor:
        """Maps waveforms (B, S) to normalised log-mel spectrograms (B, 1, F, T)."""
        return self.normalize_batch(self.to_feature(wave))

    def encode_lms(self, log_mel: Tensor, return_layers: bool = False) -> Tensor | list[Tensor]:
        """Encodes normalised log-mel spectrograms (B, 1, F, T), window after window.

        Returns:
            Frames (B, T, N_F·D), or a list of them, one a block.
        """
        layers = self._layers(log_mel)
        return layers if return_layers else layers[-1]

    def encode(self, wave: Tensor) -> Tensor:
        """Maps waveforms (B, S) to frames (B, T, N_F·D)."""
        return self._layers(self.to_normalized_spec(wave))[-1]

    def forward(self, wave: Tensor) -> Tensor:
        """Logits of the head, or frames where there is none."""
        if self.head is None:
            return self.encode(wave)
        windows = self._encode_windows(self.to_normalized_spec(wave))
        clip = torch.cat([layers[-1] for layers in windows], dim=1).mean(dim=1)
        return self.head(self.head.clip_input(clip))

    def _layers(self, log_mel: Tensor) -> list[Tensor]:
        encoded = self._encode_windows(log_mel)
        if self.flat_features:
            encoded = [frames_to_tokens(frames, self.backbone.config.grid[0]) for frames in encoded]
        return list(torch.cat(encoded, dim=2).unbind(0))

    def _encode_windows(self, log_mel: Tensor) -> list[Tensor]:
        """Frames of all layers (L, B, N_T, N_F·D) of each window."""
        windows = Windows.of(self.backbone.config).cut([log_mel])
        return [self.backbone.layer_frames(window) for _, window in windows]
