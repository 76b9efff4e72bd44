"""Classification head for clip or frame features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.config import HeadConfig
from m2d_hub.nn.linear import Linear


class Head(nn.Module):
    """Batch normalisation without affine parameters, then a linear layer, as published."""

    def __init__(self, config: HeadConfig, in_features: int):
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(in_features, affine=False)
        self.linear = Linear(in_features, config.num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)
        self._families = None if config.parents is None else _families(config)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, in_features) to logits (B, num_classes).

        A training batch of one clip is normalised with the running statistics, since it has no variance.
        """
        if self.training and len(features) == 1:
            return self._classify(self._normalise_with_running_statistics(features))
        return self._classify(self.norm(features))

    def clip_input(self, frames: Tensor) -> Tensor:
        """Return the input of the head: the frame features themselves, or the mean of their tokens.

        Args:
            frames: (..., N_F·D).

        Returns:
            (..., in_features).
        """
        return frames.unflatten(-1, (-1, self.norm.num_features)).mean(dim=-2)

    def infer(self, frames: Tensor) -> Tensor:
        """Return logits computed with the running statistics, in training mode too.

        Args:
            frames: Frames, or their means over time (B, N_F·D).

        Returns:
            (B, num_classes) float32 on the CPU.
        """
        features = self.clip_input(frames).to(self.linear.weight)
        return self._classify(self._normalise_with_running_statistics(features)).float().cpu()

    def _classify(self, normalised: Tensor) -> Tensor:
        """Return logits; those of parents are at least as high as those of their children."""
        logits = self.linear(normalised)
        return logits if self._families is None else logits[..., self._families].amax(dim=-1)

    def _normalise_with_running_statistics(self, features: Tensor) -> Tensor:
        return F.batch_norm(features, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)

    def scores(self, logits: Tensor) -> Tensor:
        """Map logits (..., num_classes) to scores from 0 to 1 with the configured activation."""
        return logits.sigmoid() if self.config.activation == "sigmoid" else logits.softmax(dim=-1)


def _families(config: HeadConfig) -> Tensor:
    """Return for each class the indices of itself and its descendants, padded with itself (C, most)."""
    families = [[index] for index in range(config.num_classes)]
    for child in range(config.num_classes):
        for parent in config.ancestors(child):
            families[parent].append(child)
    most = max(map(len, families))
    padded = [family + family[:1] * (most - len(family)) for family in families]
    return torch.tensor(padded, device="cpu")  # a constant, even if parameters are created without storage
