"""The same numbers as the published runtime, for the same weights: tests/parity holds what it answered."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import m2d_hub

PARITY = Path(__file__).parents[1] / "parity"
ATOL = 1e-4


def case(name):
    return json.loads((PARITY / f"{name}.json").read_text()), np.load(PARITY / f"{name}.npz")


def pair(reference, seconds):
    return np.stack([reference.waveform(seconds, seed=seed) for seed in (0, 1)])


@pytest.fixture(scope="module")
def published(reference, tmp_path_factory):
    settings, _ = case("encode_80x608p16x16")
    folder = tmp_path_factory.mktemp("published") / settings["name"]
    folder.mkdir()
    tensors = {
        key: torch.from_numpy(value) for key, value in reference.state_dict(**settings["config"]).items()
    }
    torch.save({"model": tensors}, folder / "checkpoint-300.pth")
    return folder / "checkpoint-300.pth"


@pytest.fixture(scope="module")
def model(published):
    return m2d_hub.load_model(published, device="cpu")


@pytest.mark.parametrize("seconds", [0.4, 3.0, 6.08, 10.0, 13.7])
def test_frames_and_clips_equal_the_published_runtime(model, reference, seconds):
    _, expected = case("encode_80x608p16x16")
    waveforms = pair(reference, seconds)
    frames = model.encode_frames(waveforms).features.numpy()
    assert frames.shape == tuple(expected[f"shape_{seconds}"])
    np.testing.assert_allclose(frames[..., ::41], expected[f"frames_{seconds}"], atol=ATOL)
    np.testing.assert_allclose(model.encode_clip(waveforms).numpy(), expected[f"clip_{seconds}"], atol=ATOL)


def test_differentiable_forward_equals_the_published_runtime(model, reference):
    _, expected = case("encode_80x608p16x16")
    frames = model(torch.from_numpy(pair(reference, 10.0)))
    np.testing.assert_allclose(frames.features.detach()[..., ::41], expected["frames_10.0"], atol=ATOL)


def test_tokens_equal_the_published_runtime(model, reference):
    _, expected = case("encode_80x608p16x16")
    tokens = model.encode_tokens(pair(reference, 3.0)).features.numpy()
    np.testing.assert_allclose(tokens[..., ::41], expected["flat_3.0"], atol=ATOL)


def test_log_mel_equals_the_published_runtime(model, reference):
    _, expected = case("encode_80x608p16x16")
    log_mel = model.frontend.log_mel(torch.from_numpy(pair(reference, 3.0)))
    np.testing.assert_allclose(log_mel.numpy(), expected["logmel_3.0"], atol=ATOL)


def test_layers_equal_the_published_runtime(model, reference):
    settings, expected = case("layers_80x608p16x16")
    layers = model.encode_layers(pair(reference, settings["seconds"])).features.numpy()
    np.testing.assert_allclose(layers[..., ::41], expected["layers"], atol=ATOL)


@pytest.mark.parametrize("name", ["interpolate_80x608_to_1001", "trim_80x608_to_208"])
def test_another_window_equals_the_published_runtime(published, reference, name):
    settings, expected = case(name)
    model = m2d_hub.load_model(published, device="cpu", window_s=settings["dur_frames"] / 100)
    frames = model.encode_frames(pair(reference, settings["seconds"])).features.numpy()
    assert frames.shape == tuple(expected["shape"])
    np.testing.assert_allclose(frames[..., ::41], expected["frames"], atol=ATOL)
    np.testing.assert_allclose(model.encoder.pos_embed[0, :, ::16], expected["pos_embed"], atol=1e-6)


def test_int8_clips_point_where_float_clips_do(published, model, reference, tmp_path):
    waveforms = pair(reference, 6.08)
    quantised = m2d_hub.load_model(published, dtype="int8").encode_clip(waveforms)
    similarity = torch.cosine_similarity(quantised, model.encode_clip(waveforms))
    assert similarity.min() >= 0.999  # the least that the benchmark's table promises
