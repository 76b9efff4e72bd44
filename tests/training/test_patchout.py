"""Structured patchout: which tokens are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from m2d_training.finetuning.patchout import draw_patchout, draw_rows_dropped, stack_patchout


def patchouts(count, num_time=62, batch_size=4):
    rng = np.random.default_rng(0)
    batches = [draw_rows_dropped(5, 0.5, rng) for _ in range(count // batch_size)]
    return [draw_patchout(5, num_time, 0.5, batches[index // batch_size], rng) for index in range(count)]


def test_patchout_draws_the_shapes_of_the_papers_runs():
    """Of 5 × 62 patches (2, 62), (3, 56), (4, 43), (5, 31) stay in 14, 28, 29, 29 % of the batches."""
    shapes = [(len(kept.rows), len(kept.columns)) for kept in patchouts(4000, batch_size=1)]
    shares = {shape: shapes.count(shape) / len(shapes) for shape in sorted(set(shapes))}
    expected = {(2, 62): 0.14, (3, 56): 0.28, (4, 43): 0.29, (5, 31): 0.29}
    assert shares == pytest.approx(expected, abs=0.025)


def test_patchout_keeps_whole_rows_and_columns_as_many_of_each_clip_of_a_batch():
    found = patchouts(4)
    assert len({(len(kept.rows), len(kept.columns)) for kept in found}) == 1
    assert len({tuple(kept.columns) for kept in found}) > 1  # but not the same ones
    for ids, kept in zip(stack_patchout(found, 1, 62).ids, found, strict=True):
        grid = torch.zeros(5 * 62).index_fill(0, ids, 1.0).reshape(5, 62)
        assert torch.equal(grid.any(dim=1).nonzero()[:, 0], torch.from_numpy(kept.rows))
        assert torch.equal(grid, grid.any(dim=1).float()[:, None] * grid.any(dim=0).float())
