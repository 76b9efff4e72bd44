"""Structured patchout (PaSST): drop whole rows and columns of a clip's tokens in training.

Random values are drawn on the CPU, clip by clip. Shapes: B clips, K windows, N_F and N_T tokens along
frequency and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptColumns:
    """Token rows and columns of one clip that are kept."""

    rows: np.ndarray  # along frequency
    columns: np.ndarray  # along time, over all windows of the clip


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of a batch of windows that are encoded."""

    ids: Tensor  # (B·K, n) int64, of each window's tokens in frequency-major order
    mask: Tensor  # (B·K, n) bool, False where a window has fewer tokens

    def to(self, device: torch.device | str) -> KeptTokens:
        """Return a copy on another device."""
        return KeptTokens(self.ids.to(device), self.mask.to(device))


def draw_rows_dropped(num_freq: int, ratio: float, rng: np.random.Generator) -> int:
    """Draw the number of dropped rows, equal in a batch: from none to just over ``ratio`` of N_F."""
    return min(int(rng.uniform(0, ratio * num_freq + 1)), num_freq - 1)


def draw_patchout(
    num_freq: int, num_time: int, ratio: float, rows_dropped: int, rng: np.random.Generator
) -> KeptColumns:
    """Draw the rows and columns of one clip's tokens to keep.

    Columns are dropped until ``ratio`` is reached. Of 5 × 62 tokens with 0.5, (5, 31), (4, 43) and (3, 56)
    are kept in two batches of seven each, (2, 62) in one: about half of them.

    Args:
        num_freq: N_F.
        num_time: Tokens of the clip along time.
        ratio: Share of the tokens to drop.
        rows_dropped: Result of :func:`draw_rows_dropped`.
        rng: Random numbers of this clip.
    """
    columns_dropped = max(0, round(num_time * (ratio - rows_dropped / num_freq)))
    columns_kept = max(1, num_time - columns_dropped)
    rows = rng.permutation(num_freq)[: num_freq - rows_dropped]
    return KeptColumns(np.sort(rows), np.sort(rng.permutation(num_time)[:columns_kept]))


def stack_patchout(kept: Sequence[KeptColumns], num_windows: int, window_tokens: int) -> KeptTokens:
    """Convert rows and columns of clips to ids of their windows' tokens.

    Args:
        kept: Rows and columns of each clip (B).
        num_windows: K, of the longest clip.
        window_tokens: N_T of each window.
    """
    windows = [
        (clip.rows, clip.columns[clip.columns // window_tokens == window] % window_tokens)
        for clip in kept
        for window in range(num_windows)
    ]
    width = max(len(columns) for _, columns in windows)
    ids = np.zeros((len(windows), len(kept[0].rows), width), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for index, (rows, columns) in enumerate(windows):
        ids[index, :, : len(columns)] = rows[:, None] * window_tokens + columns
        mask[index, :, : len(columns)] = True
    return KeptTokens(torch.from_numpy(ids).flatten(1), torch.from_numpy(mask).flatten(1))
