"""The predictor: from encoded visible patches to representations, or pixels, of masked ones.

Shapes: B batch, N patches, D encoder width, P predictor width, O width of one prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2d_hub.nn.encoder import Block, initialise_weights
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
        """Predicts the masked patches.

        Attention does not care for the tokens' order, so each token only takes its patch's position: nothing
        has to be sorted into the grid and back.

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
