"""Structured patchout: which tokens are kept."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from m2d_training.finetuning.patchout import draw_marked_rows, draw_patchout, stack_patchout


def patchouts(count, drops_marked, batch_size=1):
    rng = np.random.default_rng(0)
    batches = [draw_marked_rows(5, 0.5, rng) for _ in range(count // batch_size)]
    return [
        draw_patchout(5, 62, 0.5, batches[index // batch_size], rng, drops_marked=drops_marked)
        for index in range(count)
    ]


def test_patchout_keeps_the_rows_and_columns_that_the_platform_keeps():
    """Of 5 × 62 patches: whole rows and columns, and tokens in all, by the share of batches."""
    found = Counter()
    for kept in patchouts(4000, drops_marked=False):
        rows, columns = int(kept.all(axis=1).sum()), int(kept.all(axis=0).sum())
        found[rows, columns if rows < 3 else 0, int(kept.sum())] += 1
    shares = Counter()
    for (rows, columns, tokens), count in found.items():
        if tokens != 124:  # a filler may complete a marked column
            assert columns >= {155: 31, 172: 19, 168: 6}[tokens] and rows == {155: 0, 172: 1, 168: 2}[tokens]
        shares[tokens] += count / 4000
    assert shares == pytest.approx({124: 0.14, 168: 0.28, 172: 0.29, 155: 0.29}, abs=0.025)
    three_rows = [kept for kept in patchouts(100, drops_marked=False) if kept.sum() == 124]
    assert three_rows and all(kept.any(axis=1).sum() == 3 for kept in three_rows)


def test_patchout_in_the_papers_words_drops_whole_rows_and_columns():
    """(2, 62), (3, 56), (4, 43), (5, 31) stay in 14, 28, 29, 29 % of the batches."""
    shapes = Counter()
    for kept in patchouts(4000, drops_marked=True):
        rows, columns = kept.any(axis=1), kept.any(axis=0)
        assert np.array_equal(kept, rows[:, None] & columns)
        shapes[int(rows.sum()), int(columns.sum())] += 1 / 4000
    assert shapes == pytest.approx({(2, 62): 0.14, (3, 56): 0.28, (4, 43): 0.29, (5, 31): 0.29}, abs=0.025)


def test_clips_of_a_batch_keep_as_many_tokens_but_not_the_same_ones():
    found = patchouts(4, drops_marked=False, batch_size=4)
    stacked = stack_patchout(found, 1, 62)
    assert bool(stacked.mask.all())
    for ids, kept in zip(stacked.ids, found, strict=True):
        assert torch.equal(ids, torch.from_numpy(kept.flatten()).nonzero()[:, 0])
    assert not np.array_equal(found[0], found[1])
