"""Two-dimensional sin-cos positions, and their interpolation or cropping to another duration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(embed_dim: int, grid: tuple[int, int]) -> Tensor:
    """Return the fixed 2-D sin-cos position table of masked autoencoders (paper, section III-A1).

    The first half of the channels encodes the position in time, the second half the position in frequency.

    Args:
        embed_dim: Channels D, a multiple of 4.
        grid: Patches along frequency and time, (N_F, N_T).

    Returns:
        Table (1, 1 + N_F·N_T, D), frequency-major; row 0, the class token's, is zero.
    """
    # On the CPU, unless the model is built on the meta device, which allocates no memory.
    with torch.device("meta" if torch.empty(0).is_meta else "cpu"):
        axes = [torch.arange(num_patches, dtype=torch.float64) for num_patches in grid]
        freq, time = torch.meshgrid(*axes, indexing="ij")
        omega = 10_000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))

    def encode(position: Tensor) -> Tensor:
        angle = position.reshape(-1, 1) * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (N, D/2)

    table = torch.cat([encode(time), encode(freq)], dim=1)
    return F.pad(table, (0, 0, 1, 0)).float()[None]


def resample_positions(table: Tensor, grid: tuple[int, int], num_time: int) -> Tensor:
    """Adapt a position table to another number of patches in time (paper, section III-A2).

    A shorter table takes the first columns; a longer one is interpolated bicubically over the grid without
    antialiasing. The row of the class token is unchanged.

    Args:
        table: (1, 1 + N_F·N_T, D), frequency-major.
        grid: Its patches along frequency and time, (N_F, N_T).
        num_time: New number of patches along time.

    Returns:
        Table (1, 1 + N_F·num_time, D).
    """
    if num_time == grid[1]:
        return table
    class_row, patch_rows = table[:, :1], table[:, 1:]
    patch_rows = patch_rows.transpose(1, 2).unflatten(2, grid)  # (1, D, N_F, N_T)
    if num_time < grid[1]:
        patch_rows = patch_rows[..., :num_time]
    else:
        patch_rows = F.interpolate(
            patch_rows.float(), size=(grid[0], num_time), mode="bicubic", align_corners=False
        ).to(table.dtype)
    return torch.cat([class_row, patch_rows.flatten(2).transpose(1, 2)], dim=1)
