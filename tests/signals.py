"""Signals that tests make up."""

from __future__ import annotations

import torch


def noise(*shape: int) -> torch.Tensor:
    """Normal noise of level 0.1, always the same of a shape."""
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
