"""Offline encoders: HuBERT, M2D models and text encoders, on the fly and computed beforehand."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training import PretrainConfig
from m2d_training.cli.main import main
from m2d_training.data.crops import Crop, CropPlan, crop_waveform
from m2d_training.data.entries import read_array
from m2d_training.data.manifest import read_manifest
from m2d_training.data.stored_features import frame_features
from m2d_training.pretraining.teachers import load_teacher

from m2d_hub import M2D, ModelConfig
from m2d_hub.config import EncoderConfig

transformers = pytest.importorskip("transformers")
RATE = 16_000
SIZES = ["input_size=80x64", "embed_dim=64", "depth=1", "predictor_dim=64", "predictor_depth=1"]
SHORT = ["batch_size=2", "epochs=1", "accumulate_steps=1", "noise_ratio=0"]


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """A small HuBERT with random weights, whose frames are those of the published one: 20 ms."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7
    )
    transformers.HubertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def sounds(tmp_path):
    rng = np.random.default_rng(0)
    with (tmp_path / "list.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["file", "caption"])
        for index in range(4):
            soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(RATE + 2000 * index), RATE)
            writer.writerow([f"{index}.wav", f"sound number {index}"])
    return tmp_path / "list.csv"


def pretrain(preset, data, out, *options, settings=()):
    changes = [part for setting in (*SIZES, *SHORT, *settings) for part in ("--set", setting)]
    return CliRunner().invoke(
        main, ["pretrain", preset, "--data", str(data), "--out", str(out), *options, *changes]
    )


def test_hubert_features_are_averaged_over_each_tokens_frames(hubert, sounds):
    config = PretrainConfig(input_size=(80, 64), patch_size=(80, 4))
    teacher = load_teacher(str(hubert), config, torch.device("cpu"))
    entry = read_manifest(str(sounds)).entries[0]
    crop = crop_waveform(entry, CropPlan(config.frontend, 64, "pad"), np.random.default_rng(0))
    features = teacher.encode(torch.from_numpy(crop.values)[None])
    model = transformers.HubertModel.from_pretrained(hubert).eval()
    waveform, _ = soundfile.read(entry.path, dtype="float32")
    start = crop.first_frame * 160
    with torch.no_grad():
        clean = torch.from_numpy(waveform[start : start + 64 * 160])[None]
        clean = (clean - clean.mean()) / clean.std(correction=0)
        states = model(clean, output_hidden_states=True).hidden_states[2]
    assert features.shape == (1, 16, 32) and teacher.dim == 32
    torch.testing.assert_close(features[:, 0], states[:, 0:2].mean(dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(features[:, 7], states[:, 14:16].mean(dim=1), atol=1e-4, rtol=0)


def test_hubert_gets_clips_standardised_as_by_its_processor(hubert):
    """Zero mean and unit variance (transformers' feature extractor of HuBERT)."""
    teacher = load_teacher(str(hubert), PretrainConfig(), torch.device("cpu"))
    quiet = 0.003 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) + 0.001
    processor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    values = processor(
        [clip.numpy() for clip in quiet], sampling_rate=16_000, return_tensors="pt"
    ).input_values
    with torch.no_grad():
        model = transformers.HubertModel.from_pretrained(hubert).eval()
        expected = model(values, output_hidden_states=True).hidden_states[teacher.layer]
        torch.testing.assert_close(teacher.features(quiet), expected, atol=1e-4, rtol=0)


def test_a_run_is_not_resumed_with_a_teacher_of_other_weights(hubert, sounds, tmp_path):
    teacher = shutil.copytree(hubert, tmp_path / "teacher")
    assert pretrain("m2d-s-4s", sounds, tmp_path / "run", "--teacher", str(teacher)).exit_code == 0
    offline = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["offline"]
    assert (offline["dim"], offline["weight"]) == (32, 0.5)
    moved = teacher.rename(tmp_path / "moved")
    assert pretrain("m2d-s-4s", sounds, tmp_path / "run", "--teacher", str(moved)).exit_code == 0
    model = transformers.HubertModel.from_pretrained(moved)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(moved)
    result = pretrain("m2d-s-4s", sounds, tmp_path / "run", "--teacher", str(moved))
    assert result.exit_code == 1 and "teacher_weights" in result.output


def test_distillation_runs_with_features_computed_beforehand(hubert, sounds, tmp_path):
    shards = tmp_path / "shards"
    prepared = CliRunner().invoke(
        main, ["prepare", str(sounds), "--out", str(shards), "--teacher", str(hubert), "--json"]
    )
    assert json.loads(prepared.stdout.strip().splitlines()[-1])["clips"] == 4
    result = pretrain("m2d-s-4s", shards, tmp_path / "run")
    assert result.exit_code == 0, result.output
    offline = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["offline"]
    assert offline["dim"] == 32


def test_stored_features_are_cut_where_the_crop_is(hubert, sounds, tmp_path):
    CliRunner().invoke(
        main, ["prepare", str(sounds), "--out", str(tmp_path / "shards"), "--teacher", str(hubert)]
    )
    config = PretrainConfig(input_size=(80, 64), patch_size=(80, 2))
    (entry, *_) = read_manifest(str(tmp_path / "shards")).entries
    features = read_array(entry.features)
    crop = Crop(np.empty(0), first_frame=10)
    cut = frame_features(entry, 32, crop, num_tokens=config.grid[1], patch_frames=config.patch_size[1])
    assert features.shape[1] == 32 and cut.shape == (32, 32)
    np.testing.assert_allclose(cut[:20], features[5:25], atol=1e-6)


def test_an_m2d_teacher_gives_the_frames_of_the_clean_crop(tmp_path, sounds):
    torch.manual_seed(0)
    sizes = {"input_size": (80, 64), "embed_dim": 64, "depth": 1}
    model = M2D(ModelConfig(encoder=EncoderConfig(**sizes))).eval()
    model.save_pretrained(tmp_path / "teacher")
    config = PretrainConfig(**sizes)
    teacher = load_teacher(str(tmp_path / "teacher"), config, torch.device("cpu"))
    crop = crop_waveform(
        read_manifest(str(sounds)).entries[0], CropPlan(config.frontend, 64, "pad"), np.random.default_rng(0)
    )
    features = teacher.encode(torch.from_numpy(crop.values)[None])
    with torch.no_grad():
        log_mel = model.frontend.normalise(model.frontend.log_mel_block(torch.from_numpy(crop.values)[None]))
        tokens = model.encoder.encode(model.encoder.embed(log_mel[:, None]))[0, 1:]
    expected = torch.cat(list(tokens.view(5, 4, 64)), dim=1)  # five bands side by side
    torch.testing.assert_close(features[0], expected, atol=1e-5, rtol=0)


def test_a_teacher_of_other_frames_is_refused(tmp_path):
    model = M2D(ModelConfig(encoder=EncoderConfig(input_size=(80, 64), embed_dim=64, depth=1)))
    model.save_pretrained(tmp_path / "teacher")
    config = PretrainConfig(input_size=(80, 64), patch_size=(16, 8))
    teacher = load_teacher(str(tmp_path / "teacher"), config, torch.device("cpu"))
    with pytest.raises(Exception, match="the teacher returns 4 time frames of a crop, this run 8"):
        teacher.encode(torch.zeros(1, 63 * 160 + 400))


def test_captions_train_projections_that_the_export_carries(tmp_path, sounds):
    text_encoder = tmp_path / "text"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sound", "number", "0", "1", "2", "3"]
    text_encoder.mkdir()
    (text_encoder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(text_encoder / "vocab.txt")).save_pretrained(text_encoder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertModel(config).save_pretrained(text_encoder)
    result = pretrain(
        "m2d-clap", sounds, tmp_path / "run", "--teacher", str(text_encoder), settings=["offline.dim=16"]
    )
    assert result.exit_code == 0, result.output
    import m2d_hub

    model = m2d_hub.load_model(tmp_path / "run" / "export", device="cpu")
    assert model.encode_audio_text_space(sounds.parent / "0.wav").shape == (1, 16)
    assert model.encode_text(["sound number 1", "sound"]).shape == (2, 16)
