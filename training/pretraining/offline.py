"""Offline networks of M2D-X: online mappers and losses against labels, per-frame features, or captions.

Shapes: B batch, N_F patches along frequency, N_T time frames, D encoder width, K classes or features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.config import ClapConfig
from m2d_hub.errors import ConfigError
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import take_tokens, tokens_to_frames
from m2d_hub.nn.linear import Linear

from .config import OfflineConfig
from .losses import class_loss, contrastive_loss, cosine_loss, label_loss, mse_loss, standardise

MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(frozen=True)
class EncodedTokens:
    """Encoded and predicted tokens of a batch, with their patches."""

    visible: Tensor  # z_v (B, n_visible, D)
    predicted: Tensor | None  # of the masked tokens (B, n_masked, D); None where they are pixels
    visible_ids: Tensor  # patches (B, n_visible), frequency-major
    masked_ids: Tensor  # patches (B, n_masked)


def merge_tokens(visible: Tensor, predicted: Tensor, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
    """Put encoded visible tokens and predicted masked ones back in place (paper, section III-B1).

    Args:
        visible: z_v (B, n_visible, D).
        predicted: Predictions of the masked tokens (B, n_masked, D).
        visible_ids: Patches of ``visible`` (B, n_visible).
        masked_ids: Patches of ``predicted`` (B, n_masked).

    Returns:
        Tokens (B, N, D) in frequency-major order.
    """
    order = torch.cat([visible_ids, masked_ids], dim=1).argsort(dim=1)
    return take_tokens(torch.cat([visible, predicted.to(visible.dtype)], dim=1), order)


def mean_visible_rows(visible: Tensor, visible_ids: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average the visible tokens of each frequency row over time; rows are stacked as in a time frame.

    Args:
        visible: z_v (B, n_visible, D).
        visible_ids: Patches of ``visible`` (B, n_visible), frequency-major.
        grid: (N_F, N_T).

    Returns:
        (B, N_F·D); zeros for a row without visible tokens.
    """
    num_freq, num_time = grid
    rows = F.one_hot(visible_ids // num_time, num_freq).to(visible.dtype)  # (B, n_visible, N_F)
    shares = rows / rows.sum(dim=1, keepdim=True).clamp(min=1)
    return (shares.transpose(1, 2) @ visible).flatten(1)


class FrameMapper(nn.Module):
    """Linear online mapper of time frames, for per-frame features or labels of clips.

    Where the predictor predicts pixels, labels, or the features' mean over time, are mapped from the visible
    tokens alone.
    """

    def __init__(self, config: OfflineConfig, embed_dim: int, grid: tuple[int, int]):
        super().__init__()
        if config.dim is None:
            raise ConfigError(f"offline.dim must be given for offline {config.kind}, got None.")
        self.config = config
        self.grid = grid
        self.projection = Linear(grid[0] * embed_dim, config.dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, tokens: EncodedTokens, target: Tensor) -> Tensor:
        """Return the loss against the target.

        Args:
            tokens: Of the clips.
            target: Labels (B, K), multi-hot, or features (B, N_T, K).

        Returns:
            A scalar.
        """
        if tokens.predicted is None:
            frames = mean_visible_rows(tokens.visible, tokens.visible_ids, self.grid)[:, None]
            if self.config.kind == "features":
                target = target.mean(dim=1, keepdim=True)
        else:
            merged = merge_tokens(tokens.visible, tokens.predicted, tokens.visible_ids, tokens.masked_ids)
            frames = tokens_to_frames(merged, self.grid[0])  # (B, N_T or 1, N_F·D)
        if self.config.kind == "labels":
            mapped = self.projection(frames.mean(dim=1))  # (B, K)
            self._check(mapped, target)
            return (class_loss if self.config.label_loss == "cross-entropy" else label_loss)(mapped, target)
        mapped = self.projection(frames)  # (B, N_T, K)
        self._check(mapped, target)
        target = standardise(target)  # each frame over its channels, as the M2D target is
        return (cosine_loss if self.config.loss == "cosine" else mse_loss)(mapped, target)

    def _check(self, mapped: Tensor, target: Tensor) -> None:
        if mapped.shape != target.shape:
            raise ConfigError(
                f"the offline target for {self.config.kind} must have the shape {tuple(mapped.shape)}, "
                f"got {tuple(target.shape)}."
            )


class TextMapper(nn.Module):
    """CLAP projections of audio and text into one space, with a learned temperature (M2D-CLAP)."""

    def __init__(self, config: OfflineConfig, embed_dim: int):
        super().__init__()
        self.clap = Clap(clap_config(config, embed_dim), embed_dim)

    def forward(self, tokens: EncodedTokens, target: Tensor) -> Tensor:
        """Return the contrastive loss over the clips of all processes, of the mean visible tokens.

        Args:
            tokens: Of the clips; only the visible ones count.
            target: Features of the captions (B, text_dim).

        Returns:
            A scalar.
        """
        visible = tokens.visible
        expected = (len(visible), self.clap.config.text_dim)
        if target.shape != expected:
            raise ConfigError(
                f"the offline target for text must have the shape {expected}, got {tuple(target.shape)}."
            )
        audio = F.normalize(self.clap.project_audio(visible).float(), dim=-1)  # (B, dim)
        text = F.normalize(self.clap.text_proj(target.to(visible.dtype)).float(), dim=-1)
        with torch.no_grad():  # in place, so that the gradient can bring it back from the limit
            self.clap.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
        return contrastive_loss(gather_rows(audio), gather_rows(text), self.clap.logit_scale.float().exp())


def clap_config(config: OfflineConfig, embed_dim: int) -> ClapConfig:
    """Return the projections of M2D-CLAP: two linear layers for audio, one for text if its width differs."""
    dim = config.dim or embed_dim
    return ClapConfig(
        text_projection="none" if config.text_dim in (None, dim) else "linear",
        dim=dim,
        audio_hidden_dim=embed_dim,
        text_dim=config.text_dim or dim,
        text_encoder=config.text_encoder,
        text_pooling=config.text_pooling,
    )


OfflineNetwork = FrameMapper | TextMapper


def build_offline(config: OfflineConfig, embed_dim: int, grid: tuple[int, int]) -> OfflineNetwork:
    """Build the online mapper that ``config.kind`` needs."""
    if config.kind == "text":
        return TextMapper(config, embed_dim)
    return FrameMapper(config, embed_dim, grid)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in rank order; gradients flow back to each process.

    The processes' gradients are averaged afterwards, each process holding the loss over all rows, so the
    backward pass sums the gradients of a row over the processes (``torch.distributed.nn.functional``). In
    validation, without gradients, each process uses its rows only.
    """
    is_alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
    if is_alone or not torch.is_grad_enabled():
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows))
