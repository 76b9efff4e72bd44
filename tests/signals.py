"""Signals that tests make up."""

from __future__ import annotations

import numpy as np
import torch


def noise(*shape: int) -> torch.Tensor:
    """Normal noise of level 0.1, always the same of a shape."""
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tones(count: int, *, seconds: float = 1.0) -> tuple[list[np.ndarray], list[int]]:
    """Low (0) and high (1) tones in noise at 16 kHz, of different lengths."""
    rng = np.random.default_rng(0)
    clips, labels = [], []
    for index in range(count):
        time_s = np.arange(int(rng.uniform(0.7, 1.3) * seconds * 16_000)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200, 3_000)[index % 2] * rng.uniform(0.9, 1.1) * time_s)
        clips.append((tone + rng.normal(0, 0.05, len(time_s))).astype(np.float32))
        labels.append(index % 2)
    return clips, labels
