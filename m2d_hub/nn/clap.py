"""Projections of audio and text into a shared space (M2D-CLAP), and their text encoder.

Shapes: B batch, N patch tokens, D width of the audio encoder, E width of the shared space.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.config import ClapConfig
from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import plain_tensors
from m2d_hub.nn.encoder import Block
from m2d_hub.nn.linear import Linear
from m2d_hub.nn.text_encoder import TextEncoder, load_text_encoder

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class SemanticProjection(nn.Module):
    """A learned semantic token, prepended to the patch tokens, that attends to them in one-head blocks."""

    def __init__(self, embed_dim: int, num_blocks: int, mlp_ratio: int):
        super().__init__()
        self.sem_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.sem_blocks = nn.ModuleList(
            Block(embed_dim, num_heads=1, mlp_ratio=mlp_ratio, norm_eps=1e-5) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        nn.init.trunc_normal_(self.sem_token, std=0.02)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map patch tokens (B, N, D) to (B, D); ``mask`` (B, N) is False for tokens to ignore."""
        tokens = torch.cat([self.sem_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if mask is not None:
            mask = nn.functional.pad(mask, (1, 0), value=True)[:, None, None]
        for block in self.sem_blocks:
            tokens = block(tokens, mask)
        return self.norm(tokens[:, 0])


class Clap(nn.Module):
    """Projections of audio and text into a shared space, with the published parameter names.

    The weights of a text encoder inside a checkpoint (``text_encoder.…`` in the state dict) are kept
    unchanged; the text encoder is built when text is first encoded.
    """

    OPTIONAL_PREFIX = "text_encoder."  # of the text encoder's weights, which are optional in a state dict

    def __init__(self, config: ClapConfig, embed_dim: int):
        """Build the projections with random weights.

        Args:
            config: Layout and widths of the projections, and the text encoder that they were trained with.
            embed_dim: Width D of the audio encoder.
        """
        super().__init__()
        self.config = config
        self.audio_proj = _audio_projection(config, embed_dim)
        self.text_proj = _text_projection(config)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self._text_tensors: dict[str, Tensor] = {}
        self._text_encoder: TextEncoder | None = None

    def project_audio(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project encoded audio into the shared space.

        Args:
            tokens: All patch tokens of each clip without the class token (B, N, D). The projection with two
                linear layers uses their mean, the projection with blocks uses all tokens.
            mask: For the projection with blocks: False for tokens to ignore (B, N).

        Returns:
            (B, E), not normalised.
        """
        if self.config.audio_blocks:
            return self.audio_proj(tokens, mask)
        return self.audio_proj(tokens.mean(dim=1))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Encode and project texts. The text encoder is loaded at the first call and has no gradients.

        Returns:
            (B, E), not normalised.

        Raises:
            ConfigError: ``texts`` is not a list of strings, or transformers is not installed.
            DownloadError: The text encoder is not in the Hugging Face cache and cannot be fetched.
            CheckpointError: The width of its features does not fit the projection.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"texts must be a list of one or more strings, got {texts!r}.")
        encoder = self._text_encoder or self.load_text_encoder()
        features = encoder.encode(list(texts), self.logit_scale.device)
        if features.shape[1] != self.config.text_dim:
            raise CheckpointError(
                f"The text encoder returns {features.shape[1]} features but the projection expects "
                f"{self.config.text_dim}; load the text encoder that the weights were trained with: "
                f"{self.config.text_encoder!r}."
            )
        return self.text_proj(features.to(self.logit_scale.dtype))

    def load_text_encoder(
        self, source: str | None = None, *, local_files_only: bool = False, trust_remote_code: bool = False
    ) -> TextEncoder:
        """Load the text encoder now, or from another source; see ``text_encoder.load_text_encoder``.

        Args:
            source: Hugging Face repository or a folder; None for the repository named in the configuration.
            local_files_only: Use the Hugging Face cache only.
            trust_remote_code: Allow code from the repository to run (NV-Embed needs it).
        """
        with plain_tensors():
            self._text_encoder = load_text_encoder(
                str(source or self.config.text_encoder),
                self.config.text_pooling,
                tensors=self._text_tensors,
                local_files_only=local_files_only,
                trust_remote_code=trust_remote_code,
            )
        return self._text_encoder

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        text_prefix = prefix + self.OPTIONAL_PREFIX
        text = {key: value for key, value in state_dict.items() if key.startswith(text_prefix)}
        if text or self._text_tensors:
            self._text_encoder = None  # built from the previous weights
        self._text_tensors = {key.removeprefix(text_prefix): value.detach() for key, value in text.items()}
        projections = {key: value for key, value in state_dict.items() if key not in text}
        super()._load_from_state_dict(projections, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        text_prefix = prefix + self.OPTIONAL_PREFIX
        destination.update({text_prefix + key: value for key, value in self._text_tensors.items()})


def _audio_projection(config: ClapConfig, embed_dim: int) -> nn.Module:
    if config.audio_blocks:
        return SemanticProjection(embed_dim, config.audio_blocks, config.audio_mlp_ratio)
    return _two_layers(embed_dim, config.audio_hidden_dim, config.dim)


def _text_projection(config: ClapConfig) -> nn.Module:
    if config.text_projection == "linear":
        return Linear(config.text_dim, config.dim)
    if config.text_projection == "mlp":
        return _two_layers(config.text_dim, config.text_hidden_dim, config.dim)
    return nn.Identity()


def _two_layers(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(Linear(in_dim, hidden_dim), nn.ReLU(), Linear(hidden_dim, out_dim))
