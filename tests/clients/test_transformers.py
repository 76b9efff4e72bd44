"""A saved folder loads in transformers, registered or with its own code, and gives the model's numbers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs m2d-hub[transformers]")

from m2d_hub.clients.transformers import register, save_pretrained  # noqa: E402

RAGGED = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (50_000, 300, 20_000)]


@pytest.fixture
def tagger(tiny):
    tiny.set_head(3, labels=["dog", "cat", "rain"])
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    return tiny.eval()


@pytest.fixture
def folder(tagger, tmp_path) -> str:
    register()
    save_pretrained(tmp_path / "hf", tagger)
    return str(tmp_path / "hf")


def test_the_folder_has_what_transformers_looks_for(folder):
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= set(os.listdir(folder))
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    assert config["model_type"] == "m2d"
    assert config["auto_map"]["AutoModel"] == "modeling_m2d.M2DModel"


def test_ragged_batches_give_each_clips_own_embedding(folder, tagger):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    batch = extractor(RAGGED, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    expected = tagger.encode_frames(RAGGED)
    torch.testing.assert_close(output.last_hidden_state, expected.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.pooler_output, tagger.encode_clip(RAGGED), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["loaded", "cast", "autocast"])
def test_half_precision_is_of_the_weights_and_not_of_the_spectrogram(folder, tagger, dtype, way):
    settings = {"dtype": dtype} if way == "loaded" else {}
    model = transformers.AutoModel.from_pretrained(folder, **settings)
    if way == "cast":
        model.to(dtype)
    seen = []
    model.windowed.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    waveform = torch.from_numpy(RAGGED[2])[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=way == "autocast"):
        frames = model(waveform).last_hidden_state
        log_mel = tagger.frontend(waveform)
    assert frames.dtype == dtype
    expected = tagger.encode_frames(waveform).features
    assert torch.cosine_similarity(frames.float(), expected, dim=-1).min() > 0.999
    torch.testing.assert_close(seen[0][..., : log_mel.shape[-1]], log_mel, atol=1e-3, rtol=0)


def test_the_extractor_refuses_another_sampling_rate(folder):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    with pytest.raises(ValueError, match="takes audio at 16000 Hz, but sampling_rate=8000 was given"):
        extractor(RAGGED[0], sampling_rate=8_000)


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23),
    reason="transformers before 5.23, all that Python 3.10 can have, scores several labels by softmax",
)
def test_audio_classification_pipeline_gives_the_models_tags(folder, tagger):
    answer = transformers.pipeline("audio-classification", model=folder)(RAGGED[0], top_k=3)
    expected = tagger.classify(RAGGED[0], top_k=3)[0]
    assert [tag["label"] for tag in answer] == [tag.label for tag in expected]
    assert [tag["score"] for tag in answer] == pytest.approx([tag.score for tag in expected], abs=1e-4)


def test_feature_extraction_pipeline_gives_frames(folder, tagger):
    answer = transformers.pipeline("feature-extraction", model=folder)(RAGGED[0], return_tensors=True)
    torch.testing.assert_close(answer, tagger.encode_frames(RAGGED[0]).features, atol=1e-5, rtol=0)


def test_a_fresh_head_for_fine_tuning_is_drawn_and_gets_gradients(folder):
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True, problem_type="single_label_classification"
    )
    values = torch.from_numpy(np.stack([RAGGED[0][:20_000], RAGGED[2]]))
    output = model(values, labels=torch.tensor([0, 4]))
    output.loss.backward()
    assert output.logits.shape == (2, 5)
    assert torch.isfinite(output.loss)
    assert model.m2d.windowed.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_saved_again_by_transformers_the_numbers_stay(folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    values = torch.from_numpy(RAGGED[2])[None]
    with torch.no_grad():
        again = transformers.AutoModel.from_pretrained(tmp_path / "again")(values)
        assert torch.equal(again.last_hidden_state, model(values).last_hidden_state)


def test_the_folder_loads_where_m2d_hub_is_not_installed(folder, tagger, tmp_path):
    code = """
import sys
for name in ("m2d_hub", "nnAudio"):
    sys.modules[name] = None
import json, numpy, torch, transformers
folder = sys.argv[1]
wave = numpy.random.default_rng(300).normal(0, 0.1, 300).astype(numpy.float32)
extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
batch = extractor(wave, sampling_rate=16_000, return_tensors="pt")
model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
tagger = transformers.AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
frames = transformers.pipeline("feature-extraction", model=folder, trust_remote_code=True)(wave)
tags = transformers.pipeline("audio-classification", model=folder, trust_remote_code=True)(wave)
with torch.no_grad():
    clip, logits = model(**batch).pooler_output, tagger(**batch).logits
print(json.dumps([clip.tolist(), logits.tolist(), frames, tags]))
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 0, answer.stderr[-2_000:]
    clip, logits, frames, tags = json.loads(answer.stdout.splitlines()[-1])
    np.testing.assert_allclose(clip, tagger.encode_clip(RAGGED[1]), atol=1e-5)
    np.testing.assert_allclose(frames, tagger.encode_frames(RAGGED[1]).features, atol=1e-5)
    with torch.no_grad():
        expected = tagger.classify_waveform(torch.from_numpy(RAGGED[1])[None])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert tags[0]["label"] == tagger.classify(RAGGED[1])[0][0].label
