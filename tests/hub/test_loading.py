"""Loading: every stored precision, dtype, window and head, in any mode of the caller's torch."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import m2d_hub
from m2d_hub import ConfigError
from m2d_hub.config import ClapConfig
from m2d_hub.pretrained.checkpoint import save_checkpoint

STORED = [torch.float32, torch.float16, torch.bfloat16]
TYPES = [torch.float32, torch.float16, torch.bfloat16, "int8"]
CLIP = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype(np.float32)


def saved(model, folder, dtype=torch.float32):
    """Return a folder of the model's weights in a precision, and the model with these weights in float32."""
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_checkpoint(folder, tensors, model.config)
    exact = copy.deepcopy(model).to(dtype).float()
    return folder, exact.eval()


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one, other).min()


@pytest.fixture
def clap(tiny_config):
    torch.manual_seed(0)
    config = m2d_hub.ModelConfig(
        encoder=tiny_config.encoder, clap=ClapConfig(dim=16, audio_hidden_dim=64, text_dim=16), name="tiny"
    )
    return m2d_hub.M2D(config).eval()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("settings", [{"num_classes": 3}, {"window_s": 1.0}])
def test_every_dtype_and_stored_precision_gives_similar_embeddings(tiny, tmp_path, stored, dtype, settings):
    folder, exact = saved(tiny, tmp_path, stored)
    if "window_s" in settings:
        exact.set_window(settings["window_s"])
    model = m2d_hub.load_model(folder, device="cpu", dtype=dtype, **settings)
    embedding = model.encode_clip(CLIP)
    assert embedding.dtype == torch.float32
    minimum = {torch.float32: 1 - 1e-6, torch.float16: 0.9999, torch.bfloat16: 0.998, "int8": 0.995}[dtype]
    assert cosine(embedding, exact.encode_clip(CLIP)) > minimum
    if "num_classes" in settings:
        assert len(model.classify(CLIP)[0]) == 3
        assert model.classify_frames(CLIP).features.isfinite().all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("stored", STORED[:2], ids=str)
def test_heads_and_projections_work_in_every_dtype(tiny, clap, tmp_path, stored, dtype):
    tiny.set_head(4, activation="softmax")
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    folder, exact = saved(tiny, tmp_path / "head", stored)
    model = m2d_hub.load_model(folder, device="cpu", dtype=dtype)
    scores, expected = ({tag.index: tag.score for tag in m.classify(CLIP)[0]} for m in (model, exact))
    assert scores == pytest.approx(expected, abs=0.06)
    folder, exact = saved(clap, tmp_path / "clap", stored)
    model = m2d_hub.load_model(folder, device="cpu", dtype=dtype)
    found = model.encode_audio_text_space(CLIP)
    assert found.dtype == torch.float32 and cosine(found, exact.encode_audio_text_space(CLIP)) > 0.99


@pytest.mark.parametrize("name", ["m2d-mini", "folder"])
def test_a_model_loaded_in_inference_mode_is_an_ordinary_one(tiny, tmp_path, name):
    folder = saved(tiny, tmp_path)[0] if name == "folder" else name
    with torch.inference_mode():
        model = m2d_hub.load_model(folder, device="cpu")
        inside = model.encode_clip(CLIP)
        m2d_hub.load_model(folder, device="cpu", num_classes=3, window_s=1.0).encode_clip(CLIP)
    assert torch.equal(model.encode_clip(CLIP), inside)
    waveform = torch.from_numpy(CLIP)[None].requires_grad_()
    model.train()(waveform).features.sum().backward()
    assert waveform.grad.any() and model.encoder.blocks[0].mlp.fc1.weight.grad.any()


def test_constants_first_used_in_inference_mode_let_gradients_through(tiny):
    with torch.inference_mode():
        tiny.encode_clip(CLIP)
    waveform = torch.from_numpy(CLIP)[None].requires_grad_()
    tiny(waveform).features.sum().backward()
    assert waveform.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_default_dtype_changes_nothing(tiny, tmp_path, dtype):
    folder, exact = saved(tiny, tmp_path)
    expected = exact.encode_frames(CLIP)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = m2d_hub.load_model(folder, device="cpu", num_classes=2)
        frames = model.encode_frames(CLIP)
        assert model.encode_clip(CLIP).dtype == torch.float32
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(frames.features, expected.features, atol=1e-5, rtol=0)


def test_another_default_device_changes_nothing(tiny, tmp_path):
    folder, exact = saved(tiny, tmp_path)
    with torch.device("meta"):
        model = m2d_hub.load_model(folder, device="cpu", num_classes=2)
        frames = model.encode_frames(CLIP)
        clip = model.encode_clip(CLIP)
    assert frames.timestamps_s.device.type == "cpu"
    torch.testing.assert_close(clip, exact.encode_clip(CLIP), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window_s", [math.inf, 1.0, 4.16])
def test_a_window_is_saved(tiny, tmp_path, window_s):
    tiny.set_window(window_s)
    tiny.save_pretrained(tmp_path)
    again = m2d_hub.load_model(tmp_path, device="cpu")
    assert again.window_s == pytest.approx(tiny.window_s) == copy.deepcopy(tiny).window_s
    torch.testing.assert_close(again.encode_clip(CLIP), tiny.encode_clip(CLIP))
    again.set_window(2.08)
    assert again.window_s == pytest.approx(2.08)


def test_given_statistics_standardise_the_input(tiny, tmp_path):
    folder, exact = saved(tiny, tmp_path)
    model = m2d_hub.load_model(folder, device="cpu", mean=-5.0, std=2.0)
    log_mel = exact.frontend.log_mel(torch.from_numpy(CLIP)[None])
    torch.testing.assert_close(model.frontend(torch.from_numpy(CLIP)[None])[:, 0], (log_mel + 5) / 2)
    assert (
        m2d_hub.load_model(folder, device="cpu", std=2.0).config.frontend.mean == exact.config.frontend.mean
    )
    for wrong in ({"std": 0.0}, {"std": -1}, {"mean": math.nan}, {"mean": math.inf}, {"std": math.inf}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
            m2d_hub.load_model(folder, **wrong)


@pytest.mark.parametrize("device", ["gpu", "xpu", "meta", "", 3.5, "cuda:999"])
def test_unavailable_devices_are_refused(device):
    with pytest.raises(ConfigError, match="cannot be used"):
        m2d_hub.load_model("m2d-mini", device=device)


@pytest.mark.parametrize("device", [None, "cuda"])
def test_a_reported_but_unusable_gpu_is_an_error_that_names_the_cpu(tiny, tmp_path, monkeypatch, device):
    if torch.cuda.is_available():
        pytest.skip("has a usable GPU")
    folder, _ = saved(tiny, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device 'cuda' cannot be used \(.*or give 'cpu'"):
        m2d_hub.load_model(folder, device=device)
