"""Published checkpoints of every layout, from disk: names, sizes, rates and heads as the facts tell."""

import argparse
import math
import os

import pytest
import torch
from safetensors.torch import save_file

import m2d_hub
from m2d_hub import CheckpointError, ConfigError
from m2d_hub.pretrained.published import read_published

SMALL = {"embed_dim": 64, "depth": 2}
FINE_TUNED = "module.ar.runtime.backbone."


def head(num_features, num_classes=527):
    generator = torch.Generator().manual_seed(0)
    return {
        "module.head.norm.running_mean": torch.randn(num_features, generator=generator),
        "module.head.norm.running_var": torch.rand(num_features, generator=generator) + 0.5,
        "module.head.norm.num_batches_tracked": torch.tensor(70),
        "module.head.mlp.mlp.0.weight": torch.randn(num_classes, num_features, generator=generator),
        "module.head.mlp.mlp.0.bias": torch.randn(num_classes, generator=generator),
    }


def test_a_full_checkpoint_gives_the_encoder_and_keeps_the_rest_under_published_names(publish):
    path = publish(**SMALL, decoder_dim=32, decoder_depth=1, target_encoder=True, offline_dim=7)
    published = read_published(path)
    assert {name.split(".")[0] for name in published.tensors} == {"encoder"}
    assert {name.split(".")[0] for name in published.pretraining} == {
        *(
            "mask_token",
            "decoder_embed",
            "decoder_pos_embed",
            "decoder_blocks",
            "decoder_norm",
            "decoder_pred",
        ),
        *("target_blocks", "target_norm", "offline_predictor"),
    }
    model = m2d_hub.load_model(path)
    assert (model.embed_dim, model.frame_dim, model.window_s) == (64, 320, pytest.approx(6.08))
    assert model.config.license == "NTT evaluation licence (non-commercial)"


@pytest.mark.parametrize("prefix", ["", "backbone.", FINE_TUNED])
@pytest.mark.parametrize("wrap", [True, False], ids=["with settings", "tensors only"])
def test_every_prefix_gives_the_same_model(publish, reference, prefix, wrap):
    path = publish(prefix=prefix, wrap=wrap, **SMALL)
    model = m2d_hub.load_model(path)
    expected = torch.from_numpy(reference.state_dict(**SMALL)["blocks.1.mlp.fc2.weight"])
    assert torch.equal(model.encoder.blocks[1].mlp.fc2.weight, expected)


def test_norm_stats_set_the_normalisation_and_default_to_audiosets(publish):
    assert m2d_hub.load_model(publish(**SMALL, norm_stats=(-6.5, 3.5))).config.frontend.mean == -6.5
    frontend = m2d_hub.load_model(publish(**SMALL, norm_stats=None)).config.frontend
    assert (frontend.mean, frontend.std) == (-7.1, 4.2)


def test_32_khz_weights_get_their_frontend(publish):
    model = m2d_hub.load_model(publish("m2d_as_vit_base-80x608p16x16p32k-000000", **SMALL))
    frontend = model.config.frontend
    assert (frontend.sample_rate, frontend.hop_samples, frontend.f_max_hz) == (32_000, 320, 16_000)


@pytest.mark.parametrize(
    ("folder", "sizes", "frames", "frame_dim", "hop_s"),
    [
        ("m2d_vit_base-80x200p16x4-000000", {"input_size": (80, 200), "patch_size": (16, 4)}, 200, 320, 0.04),
        (
            "m2d_s_vit_base-80x512p80x2-000000",
            {"input_size": (80, 512), "patch_size": (80, 2)},
            512,
            64,
            0.02,
        ),
        ("m2d_vit_base-80x1001p16x16-000000", {"input_size": (80, 1001)}, 1001, 320, 0.16),
    ],
)
def test_sizes_are_those_of_the_weights(publish, folder, sizes, frames, frame_dim, hop_s):
    model = m2d_hub.load_model(publish(folder, **SMALL, **sizes))
    assert model.config.encoder.input_size == (80, frames)
    assert (model.frame_dim, model.frame_hop_s) == (frame_dim, pytest.approx(hop_s))


def test_a_renamed_folder_needs_its_sample_rate_and_nothing_else(publish):
    path = publish("renamed", **SMALL, input_size=(80, 208))
    with pytest.raises(ConfigError, match=r"does not state its sample rate.*sample_rate=16000"):
        m2d_hub.load_model(path)
    model = m2d_hub.load_model(path, sample_rate=16_000)
    assert model.config.encoder.input_size == (80, 208)


def test_settings_in_the_file_outweigh_a_renamed_folder(publish):
    model = m2d_hub.load_model(
        publish("renamed", **SMALL, input_size=(80, 1001), args={"input_size": [80, 1001], "sr": 16_000})
    )
    assert model.config.encoder.input_size == (80, 1001)


def test_settings_that_contradict_the_tensors_are_not_believed(publish):
    # A fine-tuned file keeps the settings of pre-training, but its positions were interpolated.
    path = publish(**SMALL, input_size=(80, 1001), args={"input_size": [80, 608], "sr": 16_000})
    assert m2d_hub.load_model(path).config.encoder.grid == (5, 62)


def test_interpolated_positions_tell_their_grid(publish, tmp_path):
    model = m2d_hub.load_model(publish(**SMALL, input_size=(80, 208)), window_s=3.2)
    tensors = {name: t for name, t in model.encoder.state_dict().items()}
    (tmp_path / "renamed").mkdir()
    torch.save(tensors, tmp_path / "renamed" / "weights.pth")
    loaded = m2d_hub.load_model(tmp_path / "renamed" / "weights.pth", sample_rate=16_000)
    assert loaded.config.encoder.grid == (5, 20)


def test_a_contradicting_sample_rate_is_refused(publish, tmp_path):
    m2d_hub.load_model(publish(**SMALL)).save_pretrained(tmp_path / "own")
    for path in (publish(**SMALL), tmp_path / "own"):
        with pytest.raises(ConfigError, match="is for 16000 Hz, but sample_rate=32000 was given"):
            m2d_hub.load_model(path, sample_rate=32_000)


@pytest.mark.parametrize(("num_features", "kind"), [(64, "tokens"), (320, "frames")])
def test_fine_tuned_heads_of_either_width_tag_with_audiosets_names(publish, num_features, kind):
    path = publish(
        "m2d_vit_base-80x1001p16x16-000000",
        prefix=FINE_TUNED,
        extra=head(num_features),
        **SMALL,
        input_size=(80, 1001),
    )
    model = m2d_hub.load_model(path)
    assert model.config.head.features == kind and model.config.head.activation == "sigmoid"
    waveform = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    tokens = model.encode_tokens(waveform).features
    clip = tokens.mean(dim=1) if kind == "tokens" else model.encode_clip(waveform)
    weights = head(num_features)
    normed = (clip - weights["module.head.norm.running_mean"]) / (
        weights["module.head.norm.running_var"] + 1e-5
    ).sqrt()
    logits = normed @ weights["module.head.mlp.mlp.0.weight"].T + weights["module.head.mlp.mlp.0.bias"]
    torch.testing.assert_close(model.classify_waveform(waveform), logits, atol=1e-3, rtol=1e-4)
    best = model.classify(waveform, top_k=1)[0][0]
    assert best.index == logits.argmax() and best.label == model.labels[best.index]
    # The order is that of the sorted MIDs: /g/122z_qxw first, /t/dd00136 last.
    assert (model.labels[0], model.labels[-1], len(model.labels)) == ("Firecracker", "Whimper (dog)", 527)


def test_spectrogram_constants_of_the_wrapper_are_ignored(publish):
    extra = {"module.ar.runtime.to_spec.mel_basis": torch.zeros(80, 201)}
    model = m2d_hub.load_model(publish(prefix=FINE_TUNED, extra=head(64, 10) | extra, **SMALL))
    assert model.head.linear.weight.shape == (10, 64) and model.labels is None


def clap_tensors(dim=64):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / 8  # noqa: E731
    return {
        "audio_proj.0.weight": draw(dim, dim),
        "audio_proj.0.bias": draw(dim),
        "audio_proj.2.weight": draw(dim, dim),
        "audio_proj.2.bias": draw(dim),
        "text_proj.weight": draw(dim, 24),
        "text_proj.bias": draw(dim),
    }


def test_clap_projects_the_mean_of_all_tokens(publish):
    tensors = clap_tensors()
    model = m2d_hub.load_model(publish(extra=tensors, **SMALL))
    waveform = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0)) * 0.1
    mean = model.encode_tokens(waveform).features.mean(dim=1)
    hidden = (mean @ tensors["audio_proj.0.weight"].T + tensors["audio_proj.0.bias"]).relu()
    expected = hidden @ tensors["audio_proj.2.weight"].T + tensors["audio_proj.2.bias"]
    projected = model.encode_audio_text_space(waveform)
    torch.testing.assert_close(projected, expected, atol=1e-4, rtol=1e-4)
    unit = model.encode_audio_text_space(waveform, normalize=True)
    torch.testing.assert_close(unit, projected / projected.norm(dim=1, keepdim=True))
    # The published file leaves the scale out: training starts at ln(1 / 0.07).
    assert model.clap.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_semantic_clap_layout_is_read(publish):
    dim = 64
    block = {"attn.qkv": (3 * dim, dim)} | dict.fromkeys(("attn.proj", "mlp.fc1", "mlp.fc2"), (dim, dim))
    shapes = {f"{name}.weight": shape for name, shape in block.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in block.items()}
    shapes |= {f"{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(2)
    extra = {
        f"audio_proj.sem_blocks.0.{k}": torch.randn(s, generator=generator) / 8 for k, s in shapes.items()
    }
    extra |= {
        "audio_proj.sem_token": torch.randn(1, 1, dim, generator=generator),
        "audio_proj.norm.weight": torch.ones(dim),
        "audio_proj.norm.bias": torch.zeros(dim),
        "logit_scale": torch.tensor([2.0]),
    }
    model = m2d_hub.load_model(publish("m2d_clap_vit_base-80x608p16x16p16kpB-000000", extra=extra, **SMALL))
    clap = model.config.clap
    assert (clap.text_encoder, clap.text_pooling) == ("google-bert/bert-base-uncased", "cls")
    assert model.encode_audio_text_space([[0.1] * 16_000, [0.1] * 50]).shape == (2, dim)
    assert model.clap.logit_scale.item() == 2.0


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"cls_token": Malicious()}}, tmp_path / "bad.pth")
    with pytest.raises(
        CheckpointError, match=r"bad\.pth was not loaded: it is damaged, or contains more than tensors"
    ):
        m2d_hub.load_model(tmp_path / "bad.pth")
    assert not (tmp_path / "pwned").exists()


def test_unknown_tensors_are_named(publish):
    with pytest.raises(CheckpointError, match=r"unknown layout: surprise\.weight\."):
        m2d_hub.load_model(publish(extra={"surprise.weight": torch.zeros(1)}, **SMALL))


def test_a_missing_block_tensor_is_named(publish):
    path = publish(**SMALL)
    contents = torch.load(path, weights_only=False)
    del contents["model"]["blocks.1.attn.qkv.bias"]
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match=r"missing encoder\.blocks\.1\.attn\.qkv\.bias"):
        m2d_hub.load_model(path)


def test_non_finite_published_weights_are_refused_by_name(publish):
    path = publish(**SMALL)
    contents = torch.load(path, weights_only=False)
    contents["model"]["blocks.0.norm1.weight"][5] = math.inf
    torch.save(contents, path)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-300\.pth has non-finite weights in blocks\.0\.norm1"
    ):
        m2d_hub.load_model(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "contains no tensors"),
        ([1, 2], "contains no tensors"),
        ({"epoch": 3}, r"epoch are not tensors"),
        ({"weight": torch.zeros(1)}, "unknown layout: weight"),
        ({"cls_token": torch.zeros(1, 1, 64)}, "is not an M2D checkpoint: it lacks pos_embed"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, contents, message):
    torch.save(contents, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        m2d_hub.load_model(tmp_path / "other.pth")


def test_a_damaged_file_is_refused_by_name(publish):
    path = publish(**SMALL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint-300\.pth cannot be read as a PyTorch file"):
        m2d_hub.load_model(path)


def test_files_saved_before_the_zip_format_are_read(publish):
    path = publish(**SMALL)
    contents = torch.load(path, weights_only=False)
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    assert m2d_hub.load_model(path).embed_dim == 64


def test_a_published_folder_is_read_by_its_only_file(publish):
    path = publish(**SMALL)
    assert m2d_hub.load_model(path.parent).embed_dim == 64
    (path.parent / "checkpoint-100.pth").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"checkpoint-100\.pth, checkpoint-300\.pth; give the file"):
        m2d_hub.load_model(path.parent)


def test_published_names_in_safetensors_are_read(publish, reference, tmp_path):
    folder = tmp_path / "m2d_vit_base-80x608p16x16-111111"
    folder.mkdir()
    save_file(
        {k: torch.from_numpy(v) for k, v in reference.state_dict(**SMALL).items()},
        folder / "weights.safetensors",
    )
    assert m2d_hub.load_model(folder / "weights.safetensors").embed_dim == 64


def test_optimizer_state_beside_the_model_is_ignored(publish):
    path = publish(**SMALL)
    contents = torch.load(path, weights_only=False)
    contents |= {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "scaler": {"scale": 65536.0}}
    torch.save(contents, path)
    assert isinstance(contents["args"], argparse.Namespace)
    assert m2d_hub.load_model(path).embed_dim == 64
