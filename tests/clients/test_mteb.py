"""MTEB evaluates the wrapper on an audio task, as it does any model of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import m2d_hub

mteb = pytest.importorskip("mteb", reason="needs m2d-hub[mteb]")
datasets = pytest.importorskip("datasets", reason="needs m2d-hub[mteb]")
pytestmark = pytest.mark.slow

RATE = 16_000


@pytest.fixture(scope="module")
def rows():
    """Low (0) and high (1) tones in noise, of different lengths."""
    rng = np.random.default_rng(0)
    clips = []
    for index in range(24):
        time_s = np.arange(int(rng.uniform(0.5, 1.0) * RATE)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * (200, 3_000)[index % 2] * time_s)
        noisy = (tone + rng.normal(0, 0.02, len(time_s))).astype(np.float32)
        clips.append({"audio": {"array": noisy, "sampling_rate": RATE}, "label": index % 2})
    return clips


@pytest.fixture
def wrapper(folder):
    from m2d_hub.clients.mteb import M2DWrapper

    return M2DWrapper(folder, device="cpu")


def tones_task(rows):
    from mteb.abstasks import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    class Tones(AbsTaskClassification):
        metadata = TaskMetadata(
            name="Tones",
            description="Low and high tones.",
            type="AudioClassification",
            category="a2t",
            modalities=["audio"],
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score="accuracy",
            dataset={"path": "local", "revision": "1"},
            date=("2025-01-01", "2025-01-01"),
            domains=[],
            task_subtypes=[],
            license="cc0-1.0",
            annotations_creators="derived",
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
        )
        input_column_name = "audio"

        def load_data(self, **_):
            splits = {"train": rows[:16], "test": rows[16:]}
            self.dataset = datasets.DatasetDict(
                {name: datasets.Dataset.from_list(own) for name, own in splits.items()}
            )
            self.data_loaded = True

    return Tones()


def test_mteb_tells_two_tones_apart_by_the_embeddings(wrapper, rows):
    (result,) = mteb.evaluate(wrapper, tones_task(rows), cache=None, show_progress_bar=False).task_results
    assert result.get_score() == 1.0


def test_a_loader_of_mtebs_rows_gives_the_embeddings_of_encode_clip(wrapper, tiny, rows):
    loader = torch.utils.data.DataLoader(rows[:5], batch_size=2)
    found = wrapper.encode(loader, show_progress_bar=False)
    expected = tiny.encode_clip([row["audio"]["array"] for row in rows[:5]])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_integers_channels_and_other_rates_are_taken(wrapper, tiny):
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 4_000))
    integers = (wave * 32_768).astype(np.int16)
    loader = torch.utils.data.DataLoader([{"audio": {"array": integers, "sampling_rate": 8_000}}])
    expected = tiny.encode_clip((wave, 8_000))
    np.testing.assert_allclose(wrapper.encode(loader, show_progress_bar=False), expected, atol=5e-3)


def test_a_task_without_audio_is_refused(wrapper):
    loader = torch.utils.data.DataLoader([{"text": "a dog"}])
    with pytest.raises(m2d_hub.ConfigError, match="embeds audio, but this task gives text"):
        wrapper.encode(loader, show_progress_bar=False)
