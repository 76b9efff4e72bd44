"""MTEB evaluates the wrapper on an audio task, as it does any model of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import m2d_hub

mteb = pytest.importorskip("mteb", reason="needs m2d-hub[mteb]")

from ..signals import tones  # noqa: E402
from .mteb_tones import Tones  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def wrapper(folder):
    from m2d_hub.clients.mteb import M2DWrapper

    return M2DWrapper(folder, device="cpu")


def test_mteb_separates_two_tones_by_the_embeddings(wrapper):
    task = Tones(*tones(24, seconds=0.7))
    (result,) = mteb.evaluate(wrapper, task, cache=None, show_progress_bar=False).task_results
    assert result.get_score() == 1.0


def test_a_loader_of_mtebs_rows_returns_the_embeddings_of_encode_clip(wrapper, tiny):
    rows = Tones(*tones(5)).rows
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    found = wrapper.encode(loader, show_progress_bar=False)
    expected = tiny.encode_clip([row["audio"]["array"] for row in rows])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_integers_channels_and_other_rates_are_accepted(wrapper, tiny):
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 4_000))
    integers = (wave * 32_768).astype(np.int16)
    loader = torch.utils.data.DataLoader([{"audio": {"array": integers, "sampling_rate": 8_000}}])
    expected = tiny.encode_clip((wave, 8_000))
    np.testing.assert_allclose(wrapper.encode(loader, show_progress_bar=False), expected, atol=5e-3)


def test_a_task_without_audio_is_refused(wrapper):
    loader = torch.utils.data.DataLoader([{"text": "a dog"}])
    with pytest.raises(m2d_hub.ConfigError, match="embeds audio, but this task has text"):
        wrapper.encode(loader, show_progress_bar=False)
