"""Signals made up for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch


def noise(*shape: int) -> torch.Tensor:
    """Return normal noise of level 0.1, the same for each call with a shape."""
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tones(count: int, *, seconds: float = 1.0) -> tuple[list[np.ndarray], list[int]]:
    """Return low (0) and high (1) tones in noise at 16 kHz, of different lengths."""
    rng = np.random.default_rng(0)
    clips, labels = [], []
    for index in range(count):
        time_s = np.arange(int(rng.uniform(0.7, 1.3) * seconds * 16_000)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200, 3_000)[index % 2] * rng.uniform(0.9, 1.1) * time_s)
        clips.append((tone + rng.normal(0, 0.05, len(time_s))).astype(np.float32))
        labels.append(index % 2)
    return clips, labels


def write_tones(folder: Path, splits: Iterable[str], *, samples: int = 8000) -> Path:
    """Write short tones of two pitches in noise, of different lengths, and their list; returns its path."""
    rng = np.random.default_rng(0)
    rows = ["file,label,split"]
    for index, split in enumerate(splits):
        tone = 0.2 * np.sin(np.arange(samples + 500 * index) * 0.05 * (1 + index % 2))
        soundfile.write(folder / f"{index}.wav", tone + 0.02 * rng.standard_normal(len(tone)), 16_000)
        rows.append(f"{index}.wav,{'ab'[index % 2]},{split}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"
