"""Published checkpoints on disk: sizes, sample rates, heads and text spaces of every layout."""

import math

import pytest
import torch

import m2d_hub
from m2d_hub import CheckpointError, ConfigError

from .release_server import clap_tensors

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


@pytest.mark.parametrize(
    ("folder", "sizes", "rate", "frame_dim", "hop_s"),
    [
        ("80x200p16x4-0", {"input_size": (80, 200), "patch_size": (16, 4)}, 16_000, 320, 0.04),
        ("80x1001p16x16-0", {"input_size": (80, 1001)}, 16_000, 320, 0.16),
        ("80x608p16x16p32k-0", {"input_size": (80, 608)}, 32_000, 320, 0.16),
        (
            "x",
            {"input_size": (80, 1001), "args": {"input_size": [80, 1001], "sr": 16_000}},
            16_000,
            320,
            0.16,
        ),
    ],
)
def test_sizes_are_those_of_the_weights(publish, folder, sizes, rate, frame_dim, hop_s):
    config = m2d_hub.load_model(publish(f"m2d_vit_base-{folder}", **SMALL, **sizes)).config
    assert config.encoder.input_size == sizes["input_size"]
    assert (config.frontend.sample_rate, config.frontend.hop_samples) == (rate, rate // 100)
    assert config.encoder.frame_dim == frame_dim
    assert config.encoder.patch_size[1] * config.frontend.hop_s == pytest.approx(hop_s)


def test_settings_that_contradict_the_tensors_are_ignored(publish):
    path = publish(**SMALL, input_size=(80, 1001), args={"input_size": [80, 608], "sr": 16_000})
    assert m2d_hub.load_model(path).config.encoder.grid == (5, 62)


def test_a_renamed_folder_needs_only_its_sample_rate(publish):
    path = publish("renamed", **SMALL, input_size=(80, 208))
    with pytest.raises(ConfigError, match=r"does not state its sample rate.*sample_rate=16000"):
        m2d_hub.load_model(path)
    model = m2d_hub.load_model(path, sample_rate=16_000)
    assert model.config.encoder.input_size == (80, 208)


def test_interpolated_positions_define_their_grid(publish, tmp_path):
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


def test_clap_projects_the_mean_of_all_tokens(publish):
    tensors = clap_tensors(text_dim=24)
    del tensors["logit_scale"]  # training starts at ln(1 / 0.07)
    model = m2d_hub.load_model(publish(extra=tensors, **SMALL))
    waveform = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0)) * 0.1
    mean = model.encode_tokens(waveform).features.mean(dim=1)
    hidden = (mean @ tensors["audio_proj.0.weight"].T + tensors["audio_proj.0.bias"]).relu()
    expected = hidden @ tensors["audio_proj.2.weight"].T + tensors["audio_proj.2.bias"]
    projected = model.encode_audio_text_space(waveform)
    torch.testing.assert_close(projected, expected, atol=1e-4, rtol=1e-4)
    unit = model.encode_audio_text_space(waveform, normalize=True)
    torch.testing.assert_close(unit, projected / projected.norm(dim=1, keepdim=True))
    assert model.clap.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


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
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, contents, message):
    torch.save(contents, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        m2d_hub.load_model(tmp_path / "other.pth")


def test_a_published_folder_is_read_by_its_only_file(publish):
    path = publish(**SMALL)
    assert m2d_hub.load_model(path.parent).embed_dim == 64
    (path.parent / "checkpoint-100.pth").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"checkpoint-100\.pth, checkpoint-300\.pth; give the file"):
        m2d_hub.load_model(path.parent)
