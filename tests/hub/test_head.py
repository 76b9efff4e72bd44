"""Parents of a head's classes."""

import dataclasses

import numpy as np
import pytest
import torch

import m2d_hub
from m2d_hub import HeadConfig
from m2d_hub.nn.head import Head

LABELS = ("Animal", "Dog", "Bark", "Rain")
PARENTS = (-1, 0, 1, -1)


def logits(parents, biases):
    head = Head(HeadConfig(len(biases), parents=parents), 5).eval()
    torch.nn.init.zeros_(head.linear.weight)
    head.linear.bias.data = torch.tensor(biases)
    return head(torch.zeros(1, 5))[0].tolist()


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    torch.manual_seed(0)
    config = m2d_hub.load_model("m2d-mini", device="cpu").config
    encoder = dataclasses.replace(config.encoder, embed_dim=64, depth=1)
    model = m2d_hub.M2D(
        dataclasses.replace(config, encoder=encoder, head=HeadConfig(4, parents=PARENTS), labels=LABELS)
    )
    torch.nn.init.normal_(model.required_head().linear.weight)
    folder = tmp_path_factory.mktemp("tagger")
    model.eval().save_pretrained(folder)
    return m2d_hub.load_model(str(folder), device="cpu")


def test_parents_score_at_least_as_high_as_all_their_descendants():
    assert logits(PARENTS, [-2.0, -1.0, 3.0, 0.5]) == [3.0, 3.0, 3.0, 0.5]
    assert logits(PARENTS, [4.0, -1.0, -3.0, 0.5]) == [4.0, -1.0, -3.0, 0.5]
    assert logits(None, [-2.0, -1.0, 3.0, 0.5]) == [-2.0, -1.0, 3.0, 0.5]


def test_saved_models_keep_the_parents_of_their_classes(tagger):
    waveform = np.random.default_rng(0).normal(size=48_000).astype(np.float32) * 0.1
    assert tagger.config.head.parents == PARENTS
    scores = {tag.label: tag.score for tag in tagger.classify(waveform, top_k=4)[0]}
    assert scores["Animal"] >= scores["Dog"] >= scores["Bark"]
    frames = tagger.classify_frames(waveform).features[0]
    assert (frames[:, 0] >= frames[:, 1]).all() and (frames[:, 1] >= frames[:, 2]).all()


@pytest.mark.slow
def test_onnx_files_keep_the_parents_of_classes(tagger, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    waveform = np.random.default_rng(0).normal(size=(1, 48_000)).astype(np.float32) * 0.1
    tagger.export_onnx(tmp_path / "tagger.onnx", outputs=("scores",))
    (scores,) = runtime.InferenceSession(tmp_path / "tagger.onnx").run(
        None, {"waveform": waveform, "lengths": np.array([48_000])}
    )
    tags = tagger.classify(waveform[0], top_k=4)[0]
    assert [scores[0, tag.index] for tag in tags] == pytest.approx([tag.score for tag in tags], abs=1e-5)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((-1, 0), "head parents must be 3 numbers, each an integer from -1 to 2, got"),
        ((-1, 0, 3), "head parents must be 3 numbers"),
        ((-1, 2, 1), "head parents contain a cycle at class 1"),
    ],
)
def test_parents_that_are_not_a_forest_are_refused(parents, message):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        HeadConfig(3, parents=parents)
