"""The target encoder: a slowly moving average of the online encoder that makes the training signal.

Shapes: B batch, N patch tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2d_hub.config import EncoderConfig
from m2d_hub.nn.encoder import Block, Encoder, initialise_weights


class TargetEncoder(nn.Module):
    """Momentum encoder f_ξ (paper, section III-A1).

    It has blocks and a norm of its own, which start from their own random weights; patch embedding, positions
    and class token are those of the online encoder. Gradients never reach it.
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
        """Encodes patch tokens.

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
        """Moves the weights towards the online encoder's: ξ ← τ·ξ + (1 − τ)·θ (paper, equation 3)."""
        own: list[Tensor] = [*self.blocks.parameters(), *self.norm.parameters()]
        others: list[Tensor] = [*online.blocks.parameters(), *online.norm.parameters()]
        torch._foreach_lerp_(own, others, 1.0 - decay)
