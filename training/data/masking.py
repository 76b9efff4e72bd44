"""Masks of patches: random patches, runs of frames, or whole rows and columns.

Ids count patches in frequency-major order. All masks of one kind, grid and ratio have the same sizes, so they
stack into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PatchMask:
    """A partition of the patches of one clip."""

    visible_ids: np.ndarray  # (n_visible,) int64
    masked_ids: np.ndarray  # (n_masked,) int64


def draw_mask(
    kind: str, grid: tuple[int, int], mask_ratio: float, rng: np.random.Generator, run_frames: int = 5
) -> PatchMask:
    """Draw the mask of one clip.

    Args:
        kind: ``"random"``, ``"time"`` or ``"structured"``.
        grid: Patches along frequency and time, (N_F, N_T).
        mask_ratio: Share of the patches to mask.
        rng: Source of randomness.
        run_frames: Token frames of one run, for ``"time"``.
    """
    if kind == "random":
        order = np.argsort(rng.random(grid[0] * grid[1]))
    elif kind == "time":
        order = _order_by_time_runs(grid, run_frames, rng)
    else:
        order = _order_by_rows_and_columns(grid, mask_ratio, rng)
    visible = count_visible(kind, grid, mask_ratio)
    return PatchMask(visible_ids=order[:visible], masked_ids=order[visible:])


def count_visible(kind: str, grid: tuple[int, int], mask_ratio: float) -> int:
    """Return the number of visible patches: int(N · (1 − ratio)), or nearly so for rows and columns."""
    num_freq, num_time = grid
    if kind == "random":
        return int(num_freq * num_time * (1 - mask_ratio))
    if kind == "time":
        return num_freq * int(num_time * (1 - mask_ratio))
    kept_freq, kept_time = _kept_rows_and_columns(grid, mask_ratio)
    return kept_freq * kept_time


def _order_by_time_runs(grid: tuple[int, int], run_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return patches with the visible ones first, where frames of one run are adjacent."""
    num_freq, num_time = grid
    offset = rng.integers(run_frames)
    run_of_frame = (np.arange(num_time) + offset) // run_frames
    runs = rng.permutation(run_of_frame[-1] + 1)
    frames = np.argsort(runs[run_of_frame], kind="stable")
    return (frames[:, None] + num_time * np.arange(num_freq)).reshape(-1)


def _kept_rows_and_columns(grid: tuple[int, int], mask_ratio: float) -> tuple[int, int]:
    """Return the numbers of visible rows and columns, about the same share of both."""
    num_freq, num_time = grid
    kept_freq = max(1, round(num_freq * (1 - mask_ratio) ** 0.5))
    kept_time = round(num_freq * num_time * (1 - mask_ratio) / kept_freq)
    return kept_freq, min(max(kept_time, 1), num_time)


def _order_by_rows_and_columns(
    grid: tuple[int, int], mask_ratio: float, rng: np.random.Generator
) -> np.ndarray:
    num_freq, num_time = grid
    kept_freq, kept_time = _kept_rows_and_columns(grid, mask_ratio)
    visible = np.zeros(grid, dtype=bool)
    rows = rng.permutation(num_freq)[:kept_freq]
    columns = rng.permutation(num_time)[:kept_time]
    visible[np.ix_(rows, columns)] = True
    return np.argsort(~visible.reshape(-1), kind="stable")
