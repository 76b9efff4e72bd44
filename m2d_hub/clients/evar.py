"""EVAR (eval-audio-repr): the runtime that its M2D wrapper looks for.

>>> from m2d_hub.clients.evar import RuntimeM2D
>>> runtime = RuntimeM2D(weight_file="m2d-as-0.7")
>>> frames = runtime.encode(waveforms)  # (B, T, N_F·D)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m2d_hub.checks import Numbers, require
from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import frames_to_tokens, take_tokens
from m2d_hub.nn.patchout import KeptTokens, draw_patchout, draw_rows_dropped, stack_patchout
from m2d_hub.pretrained.registry import DEFAULT_MODEL
from m2d_hub.windows import Windows

TRAINING_MASKS = Numbers(least=0, most=1, without_ends="most")  # shares of tokens

# EVAR's names of what the weights fix, and the frontend's
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
    """An M2D model behind EVAR's names, differentiable.

    Attributes:
        cfg: The settings that were given, filled in: with ``feature_d``, sizes and statistics of the model.
        backbone: The encoder; its names in checkpoints follow ``backbone.``.
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
        """Loads a model on the CPU; EVAR moves it.

        Args:
            cfg: EVAR's settings, an object with attributes. Each of the arguments below, and ``mean`` and
                ``std``, is taken from there where it is not given.
            weight_file: What :func:`m2d_hub.load_model` takes; None for ``m2d-mini``.
            training_mask: Share of the tokens, from 0 to below 1, that structured patchout drops in training
                mode. Above 0, features are tokens (``flat_features``) and a head takes their mean.
            encoder_only: Drop the head.
            dur_frames: Frames of a window; None: as pre-trained.
            num_classes: Classes of a fresh head.
            freeze_embed: Keep the patch embedding's weights as they are.
            flat_features: Give tokens (B, N_F·T, D) rather than frames (B, T, N_F·D).

        Raises:
            ConfigError: ``cfg`` has no attributes, or a spectrogram that the weights were not trained with;
                or ``training_mask`` is no such share, or the weights' own head takes frames.
        """
        super().__init__()
        self.cfg = _checked(cfg)

        def setting(given: Any, name: str) -> Any:
            return getattr(self.cfg, name, None) if given is None else given

        self.training_mask = setting(training_mask, "training_mask") or 0.0
        require(
            self.training_mask in TRAINING_MASKS,
            f"training_mask must be {TRAINING_MASKS}, got {self.training_mask!r}.",
        )
        name = setting(weight_file, "weight_file") or DEFAULT_MODEL
        classes = setting(num_classes, "num_classes")
        model = load_model(
            name,
            device="cpu",
            num_classes=classes,
            mean=setting(None, "mean"),
            std=setting(None, "std"),
        )
        if frames := setting(dur_frames, "dur_frames"):
            model.set_window(frames * model.config.frontend.hop_s)
        if self.training_mask and classes is not None:
            model.set_head(classes, features="tokens")
        self.frontend, self.backbone, self.clap = model.frontend, model.encoder, model.clap
        self.head = None if setting(encoder_only, "encoder_only") else model.head
        require(
            not self.training_mask or self.head is None or self.head.config.features == "tokens",
            f"training_mask leaves tokens, and the head of {name} takes frames: give num_classes for a fresh "
            "head, encoder_only, or a training_mask of 0.",
        )
        self.flat_features = bool(setting(flat_features, "flat_features") or self.training_mask)
        if setting(freeze_embed, "freeze_embed"):
            self.backbone.patch_embed.requires_grad_(False)
        self._fill_in(str(name))

    def _fill_in(self, name: str) -> None:
        """Puts what the model fixes into ``cfg``, which EVAR reads again."""
        frontend, encoder = self.frontend.config, self.backbone.config
        for theirs, ours in _SPECTROGRAM.items():
            given, own = getattr(self.cfg, theirs, None), getattr(frontend, ours)
            if given not in (None, own):
                raise ConfigError(
                    f"cfg.{theirs} is {given}, but {name} takes {own}: its spectrogram is that which it was "
                    "trained with. Set it so, or give weights that were trained with yours."
                )
            setattr(self.cfg, theirs, own)
        layers = getattr(self.cfg, "output_layers", [-1])  # which EVAR stacks; None: all
        width = encoder.embed_dim if self.flat_features else encoder.frame_dim
        self.cfg.feature_d = width * (encoder.depth if layers is None else len(layers))
        self.cfg.weight_file = name
        self.cfg.input_size, self.cfg.patch_size = encoder.input_size, encoder.patch_size
        self.cfg.mean, self.cfg.std = frontend.mean, frontend.std

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
            Frames (B, T, N_F·D), or a list of them, one a block. In training mode with ``training_mask``, the
            tokens that stay (B, n, D).
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
        if self._drops_tokens:
            return self.head(self.encode(wave).mean(dim=1))
        windows = self._encode_windows(self.to_normalized_spec(wave))
        clip = torch.cat([layers[-1] for layers in windows], dim=1).mean(dim=1)
        return self.head(self.head.clip_input(clip))

    def encode_clap_audio(self, wave: Tensor) -> Tensor:
        """Maps waveforms (B, S) into the space shared with text (B, E)."""
        return self.project_audio(self.encode(wave))

    def project_audio(self, features: Tensor) -> Tensor:
        """Maps what :meth:`encode` gives of clips into the space shared with text (B, E).

        Raises:
            ConfigError: The weights carry no projections.
        """
        tokens = features
        if not self.flat_features:
            tokens = frames_to_tokens(features, self.backbone.config.grid[0])
        return self._required_clap().project_audio(tokens)

    def encode_clap_text(self, batch_text: Sequence[str]) -> Tensor:
        """Maps texts into the space shared with audio (B, E).

        Raises:
            ConfigError: The weights carry no projections, or transformers is not installed.
        """
        return self._required_clap().encode_text(list(batch_text))

    def _required_clap(self) -> Clap:
        if self.clap is None:
            raise ConfigError(
                f"{self.cfg.weight_file} has no projections into a text space. Give 'm2d-clap-2024'."
            )
        return self.clap

    @property
    def _drops_tokens(self) -> bool:
        return self.training and self.training_mask > 0

    def _layers(self, log_mel: Tensor) -> list[Tensor]:
        if self._drops_tokens:
            return self._thinned_layers(log_mel)
        encoded = self._encode_windows(log_mel)
        if self.flat_features:
            encoded = [frames_to_tokens(frames, self.backbone.config.grid[0]) for frames in encoded]
        return list(torch.cat(encoded, dim=2).unbind(0))

    def _thinned_layers(self, log_mel: Tensor) -> list[Tensor]:
        """Tokens of all layers (B, n, D) that structured patchout leaves."""
        layout = Windows.of(self.backbone.config).fitted(log_mel.shape[-1])
        windows, num_windows = layout.stack(log_mel[:, 0])
        kept = self._draw_kept(
            len(log_mel), layout.count(log_mel.shape[-1]), num_windows, layout.window_tokens
        )
        kept = kept.to(log_mel.device)
        tokens = take_tokens(self.backbone.embed(windows[:, None]), kept.ids)
        layers = self.backbone.encode_layers(tokens, None if bool(kept.mask.all()) else kept.mask)
        return [layer[:, 1:][kept.mask].unflatten(0, (len(log_mel), -1)) for layer in layers]

    def _draw_kept(self, num_clips: int, num_time: int, num_windows: int, window_tokens: int) -> KeptTokens:
        """Draws from torch's generator, so that its seed fixes them."""
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        num_freq, ratio = self.backbone.config.grid[0], self.training_mask
        dropped = draw_rows_dropped(num_freq, ratio, rng)
        kept = [draw_patchout(num_freq, num_time, ratio, dropped, rng) for _ in range(num_clips)]
        return stack_patchout(kept, num_windows, window_tokens)

    def _encode_windows(self, log_mel: Tensor) -> list[Tensor]:
        """Frames of all layers (L, B, N_T, N_F·D) of each window."""
        windows = Windows.of(self.backbone.config).cut(log_mel)
        return [self.backbone.layer_frames(window) for _, window in windows]


def _checked(cfg: Any) -> Any:
    """Settings with attributes; None: empty ones.

    Raises:
        ConfigError: They have none.
    """
    if cfg is None:
        return SimpleNamespace()
    if not hasattr(cfg, "__dict__"):
        raise ConfigError(
            f"cfg must have its settings as attributes, as EVAR's EasyDict has, got a {type(cfg).__name__}."
        )
    return cfg
