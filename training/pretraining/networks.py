"""Predictor and target encoder: the networks beside the online encoder.

Shapes: B batch, N patches, D encoder width, P predictor width, O width of one prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2d_hub.config import EncoderConfig
from m2d_hub.nn.encoder import Block, Encoder, initialise_weights
from m2d_hub.nn.linear import Linear
from m2d_hub.nn.positional import sincos_positions

from .config import PredictorConfig


class Predictor(nn.Module):
    """Transformer g_θ over visible tokens and mask tokens (paper, equation 1)."""

    def __init__(self, config: PredictorConfig, encoder_dim: int, out_dim: int, grid: tuple[int, int]):
        super().__init__()
        self.embed = Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(sincos_positions(config.dim, grid), requires_grad=False)
        num_heads = config.dim // config.head_width
        self.blocks = nn.ModuleList(Block(config.dim, num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.projection = Linear(config.dim, out_dim)
        self.apply(initialise_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
        """Predict the masked patches.

        Attention ignores the order of the tokens, so each token only needs its patch's position: nothing is
        sorted into the grid and back.

        Args:
            encoded: Output of the online encoder (B, 1 + n_visible, D), the class token first.
            visible_ids: Patches of ``encoded`` (B, n_visible).
            masked_ids: Patches to predict (B, n_masked).

        Returns:
            (B, n_masked, O), in the order of ``masked_ids``.
        """
        batch, num_masked = masked_ids.shape
        mask_tokens = self.mask_token.expand(batch, num_masked, -1)
        tokens = torch.cat([self.embed(encoded), mask_tokens], dim=1)  # (B, 1 + N, P)
        ids = torch.cat([visible_ids, masked_ids], dim=1) + 1
        ids = torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)
        tokens = tokens + self.pos_embed[0, ids]
        for block in self.blocks:
            tokens = block(tokens)
        return self.projection(self.norm(tokens[:, -num_masked:]))


class TargetEncoder(nn.Module):
    """Momentum encoder f_ξ (paper, section III-A1).

    Its blocks and norm start from separate random weights; patch embedding, positions and class token are
    those of the online encoder. Gradients never reach it.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.apply(initialise_weights)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, class_token: Tensor) -> Tensor:
        """Encode patch tokens.

        Args:
            tokens: Embedded patches with positions (B, N, D).
            class_token: With its position (1, 1, D).

        Returns:
            Encoded tokens (B, N, D), without the class token.
        """
        tokens = torch.cat([class_token.expand(len(tokens), -1, -1), tokens], dim=1)  # (B, 1 + N, D)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 1:]

    @torch.no_grad()
    def update(self, online: Encoder, decay: float) -> None:
        """Move the weights towards the online encoder's: ξ ← τ·ξ + (1 − τ)·θ (paper, equation 3)."""
        moved: list[Tensor] = [*self.blocks.parameters(), *self.norm.parameters()]
        others: list[Tensor] = [*online.blocks.parameters(), *online.norm.parameters()]
        torch._foreach_lerp_(moved, others, 1.0 - decay)
