"""A saved folder loads in transformers, registered or with its own code, and returns the model's numbers."""

import ast
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import m2d_hub

transformers = pytest.importorskip("transformers", reason="needs m2d-hub[transformers]")

from m2d_hub.clients.transformers import register, save_pretrained  # noqa: E402

RAGGED = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (50_000, 300, 20_000)]


@pytest.fixture(scope="module")
def tagger(saved_tiny):
    model = copy.deepcopy(saved_tiny[0])
    model.set_head(3, labels=["dog", "cat", "rain"])
    torch.nn.init.normal_(model.head.linear.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tagger, tmp_path_factory) -> str:
    register()
    path = tmp_path_factory.mktemp("hf")
    save_pretrained(path, tagger)
    return str(path)


def test_ragged_batches_return_the_embedding_of_each_clip(folder, tagger):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    batch = extractor(RAGGED, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    expected = tagger.encode_frames(RAGGED)
    torch.testing.assert_close(output.last_hidden_state, expected.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.pooler_output, tagger.encode_clip(RAGGED), atol=1e-5, rtol=0)


def test_masks_other_than_of_padding_after_the_clip_are_refused(folder):
    model = transformers.AutoModel.from_pretrained(folder)
    left, hole, empty = (torch.ones(2, 4_000) for _ in range(3))
    left[0, :500] = hole[1, 1_000:2_000] = empty[1] = 0
    for mask in (left, hole, empty, torch.ones(2, 3_000), torch.ones(3, 4_000)):
        with pytest.raises(
            ValueError, match=r"does not mark the samples of each clip.*; pad clips on the right"
        ):
            model(torch.zeros(2, 4_000), attention_mask=mask)


@pytest.mark.parametrize(
    ("way", "dtype"), [("loaded", torch.bfloat16), ("cast", torch.float16), ("autocast", torch.bfloat16)]
)
def test_half_precision_applies_to_the_weights_but_not_the_spectrogram(folder, tagger, dtype, way):
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


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_the_extractor_scales_integers(folder, dtype):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    wave = RAGGED[2].clip(-0.9, 0.9)
    integers = np.round(wave * (2.0 ** (8 * np.dtype(dtype).itemsize - 1))).astype(dtype)
    batch, ragged = np.stack([integers, integers]), [integers, integers[:50]]
    for audio in (integers, batch, ragged, torch.from_numpy(integers)):
        values = extractor(audio, sampling_rate=16_000, return_tensors="np")["input_values"]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values[0], wave, atol=2**-15)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((2, 3, 4)), r"raw_speech has shape \(2, 3, 4\)"),
        ([RAGGED[1], "a.wav"], "clip 1 is of type str"),
    ],
)
def test_the_extractor_refuses_invalid_audio_by_name(folder, raw, message):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    with pytest.raises(m2d_hub.AudioError, match=message):
        extractor(raw, return_tensors="pt")


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForAudioClassification"])
def test_hidden_states_are_the_frames_of_the_patches_and_of_every_block(folder, tagger, auto):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = getattr(transformers, auto).from_pretrained(folder, output_hidden_states=True)
    batch = extractor(RAGGED, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        output, without = model(**batch), model(**batch, output_hidden_states=False, return_dict=False)
    assert len(output.hidden_states) == 1 + len(tagger.encoder.blocks)
    expected = tagger.encode_layers(RAGGED).features
    torch.testing.assert_close(torch.stack(output.hidden_states[1:]), expected, atol=1e-5, rtol=0)
    assert torch.equal(without[0], output[0])
    assert len(without) == (2 if auto == "AutoModel" else 1)
    assert (output.hidden_states[0][1, 1:] == 0).all()  # beyond the end of the clip of 300 samples


@pytest.mark.slow
def test_gradients_of_accumulated_batches_are_those_of_one(folder, tmp_path):
    wave = RAGGED[2][:8_000]
    rows = [{"input_values": wave * scale, "labels": label} for scale, label in ((0.5, 0), (1.0, 1))]
    steps = {}
    for batch_size in (1, 2):
        model = transformers.AutoModelForAudioClassification.from_pretrained(
            folder, problem_type="single_label_classification"
        )
        model.head.norm.eval().train = lambda mode=True, norm=model.head.norm: norm
        arguments = transformers.TrainingArguments(
            str(tmp_path / str(batch_size)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=2 // batch_size,
            max_steps=1,
            optim="sgd",
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=rows).train()
        steps[batch_size] = model.head.linear.weight.detach()
    torch.testing.assert_close(steps[1], steps[2], atol=1e-6, rtol=0)


def test_the_card_names_what_the_folder_needs_and_its_example_runs(folder, tmp_path):
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    needed = {"torch", "transformers", "numpy"}  # which the first two bring
    code = (Path(folder) / "modeling_m2d.py").read_text(encoding="utf-8")
    imported = {name for node in ast.walk(ast.parse(code)) for name in roots(node)}
    assert imported - set(sys.stdlib_module_names) == needed
    assert "pip install torch transformers; nothing else is needed" in card
    (block,) = re.findall(r"```python\n(.*?)```", card, re.S)
    values: dict = {}
    exec(block.replace("path/to/this/folder", folder), values)
    assert values["clip"].shape == (1, 320)


def roots(node: ast.AST) -> list[str]:
    """First parts of the names that an import names."""
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []


def test_the_extractor_refuses_another_sampling_rate(folder):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    with pytest.raises(ValueError, match="takes audio at 16000 Hz, but sampling_rate is 8000"):
        extractor(RAGGED[0], sampling_rate=8_000)


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23),
    reason="transformers before 5.23, all that Python 3.10 can have, scores several labels by softmax",
)
def test_audio_classification_pipeline_returns_the_models_tags(folder, tagger):
    answer = transformers.pipeline("audio-classification", model=folder)(RAGGED[0], top_k=3)
    expected = tagger.classify(RAGGED[0], top_k=3)[0]
    assert [tag["label"] for tag in answer] == [tag.label for tag in expected]
    assert [tag["score"] for tag in answer] == pytest.approx([tag.score for tag in expected], abs=1e-4)


@pytest.mark.slow
def test_feature_extraction_pipeline_returns_frames(folder, tagger):
    answer = transformers.pipeline("feature-extraction", model=folder)(RAGGED[0], return_tensors=True)
    torch.testing.assert_close(answer, tagger.encode_frames(RAGGED[0]).features, atol=1e-5, rtol=0)


def test_a_new_head_for_fine_tuning_is_initialised_and_gets_gradients(folder):
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True, problem_type="single_label_classification"
    )
    values = torch.from_numpy(np.stack([RAGGED[0][:20_000], RAGGED[2]]))
    output = model(values, labels=torch.tensor([0, 4]))
    output.loss.backward()
    assert output.logits.shape == (2, 5)
    assert torch.isfinite(output.loss)
    assert model.m2d.windowed.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_saved_again_by_transformers_the_numbers_and_the_code_stay(folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    extractor.save_pretrained(tmp_path / "extractor")
    code = (Path(folder) / "modeling_m2d.py").read_text(encoding="utf-8")
    for saved in ("again", "extractor"):
        assert (tmp_path / saved / "modeling_m2d.py").read_text(encoding="utf-8") == code
    values = torch.from_numpy(RAGGED[2])[None]
    with torch.no_grad():
        again = transformers.AutoModel.from_pretrained(tmp_path / "again")(values)
        assert torch.equal(again.last_hidden_state, model(values).last_hidden_state)


@pytest.mark.slow
def test_the_folder_loads_where_m2d_hub_is_not_installed(folder, tagger, tmp_path):
    code = """
import sys
for name in ("m2d_hub", "nnAudio", "einops", "soundfile", "torchaudio"):
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
