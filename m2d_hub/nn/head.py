"""The classifier on top of a clip or frame feature."""

from __future__ import annotations

from torch import Tensor, nn

from m2d_hub.config import HeadConfig


class Head(nn.Module):
    """Batch normalisation without affine parameters, then one linear layer, as published."""

    def __init__(self, config: HeadConfig, in_features: int):
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(in_features, affine=False)
        self.linear = nn.Linear(in_features, config.num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, in_features) to logits (B, num_classes)."""
        return self.linear(self.norm(features))

    def scores(self, logits: Tensor) -> Tensor:
        """Maps logits (..., num_classes) to scores in 0-1: sigmoid for multi-label heads, else softmax."""
        return logits.sigmoid() if self.config.activation == "sigmoid" else logits.softmax(dim=-1)
