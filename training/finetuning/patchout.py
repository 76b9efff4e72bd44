"""Structured patchout (PaSST): encode about half of a clip's tokens in training.

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
class KeptTokens:
    """Tokens of a batch of windows that are encoded."""

    ids: Tensor  # (B·K, n) int64, of each window's tokens in frequency-major order
    mask: Tensor  # (B·K, n) bool, False where a window has fewer tokens

    def to(self, device: torch.device | str) -> KeptTokens:
        """Return a copy on another device."""
        return KeptTokens(self.ids.to(device), self.mask.to(device))


def draw_marked_rows(num_freq: int, ratio: float, rng: np.random.Generator) -> int:
    """Draw the number of marked rows, equal in a batch: from none to just over ``ratio`` of N_F."""
    return min(int(rng.uniform(0, ratio * num_freq + 1)), num_freq - 1)


def draw_patchout(
    num_freq: int,
    num_time: int,
    ratio: float,
    marked_rows: int,
    rng: np.random.Generator,
    *,
    drops_marked: bool = False,
) -> np.ndarray:
    """Draw which of one clip's tokens are kept.

    Rows, and columns up to ``ratio`` of the tokens, are marked. The paper describes that they are dropped.
    Its evaluation platform drops as many tokens, but keeps the marked ones and others at random. Of 5 × 62
    tokens with 0.5, it keeps 31 columns; 1 row, 19 columns and 34 others; 2 rows, 6 columns and 26 others (in
    two batches of seven each); or 124 tokens of 3 rows (in one).

    Args:
        num_freq: N_F.
        num_time: Tokens of the clip along time.
        ratio: Share of the tokens to drop.
        marked_rows: Result of :func:`draw_marked_rows`.
        rng: Random numbers of this clip.
        drops_marked: Drop the marked rows and columns, as the paper describes.

    Returns:
        (N_F, num_time) bool, True where a token is kept.
    """
    marked_columns = min(max(0, round(num_time * (ratio - marked_rows / num_freq))), num_time - 1)
    marked = np.zeros((num_freq, num_time), dtype=bool)
    marked[rng.permutation(num_freq)[:marked_rows]] = True
    marked[:, rng.permutation(num_time)[:marked_columns]] = True
    if drops_marked:
        return ~marked
    count = (num_freq - marked_rows) * (num_time - marked_columns)
    first = np.argsort(rng.random(marked.size) - marked.flatten())[:count]
    return np.isin(np.arange(marked.size), first).reshape(marked.shape)


def stack_patchout(kept: Sequence[np.ndarray], num_windows: int, window_tokens: int) -> KeptTokens:
    """Convert the kept tokens of clips to ids of their windows' tokens.

    Args:
        kept: Results of :func:`draw_patchout` (B).
        num_windows: K, of the longest clip.
        window_tokens: N_T of each window.
    """
    total = num_windows * window_tokens
    padded = [np.pad(clip, ((0, 0), (0, max(0, total - clip.shape[1]))))[:, :total] for clip in kept]
    starts = range(0, total, window_tokens)
    windows = [clip[:, start : start + window_tokens] for clip in padded for start in starts]
    found = [torch.from_numpy(np.flatnonzero(window)) for window in windows]
    ids = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)  # (B·K, n)
    counts = torch.tensor([len(own) for own in found])
    return KeptTokens(ids, torch.arange(ids.shape[1]) < counts[:, None])
