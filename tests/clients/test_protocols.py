"""Clients called as their programs call them, with a small model on disk."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import m2d_hub

from ..signals import noise

M2D_D = 320  # features of a frame of the tiny model: 5 tokens along frequency of 64


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), atol=atol, rtol=0)


# HEAR 2021: https://hearbenchmark.com/hear-api.html


def test_hear_gives_plain_sizes_and_evenly_spaced_milliseconds(folder, tiny):
    from m2d_hub.clients import hear

    model = hear.load_model(folder)
    sizes = [model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size]
    assert sizes == [16_000, M2D_D, M2D_D]
    assert {type(size) for size in sizes} == {int}
    audio = noise(3, 59_840)
    embeddings, times_ms = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (3, 24, M2D_D)
    assert times_ms.shape == (3, 24)
    assert times_ms[0, 0] == 75  # the centre of frames 0 to 15, 10 ms apart
    assert (times_ms.diff(dim=1) - 160).abs().max() < 1e-3
    close(hear.get_scene_embeddings(audio, model), tiny.encode_clip(audio))


# EVAR: https://github.com/nttcslab/eval-audio-repr, evar/ar_m2d.py


def test_evar_runtime_gives_the_frames_of_the_model(folder, tiny):
    from m2d_hub.clients.evar import RuntimeM2D

    runtime = RuntimeM2D(weight_file=folder, encoder_only=True)
    wave = noise(2, 70_000)
    close(runtime.encode(wave).detach(), tiny.encode_frames(wave).features)
    log_mel = runtime.to_feature(wave)
    assert log_mel.shape == (2, 1, 80, 438)
    normalised = runtime.normalize_batch(log_mel)
    torch.testing.assert_close(normalised, runtime.to_normalized_spec(wave))
    layers = runtime.encode_lms(normalised, return_layers=True)
    close(torch.stack(layers).detach(), tiny.encode_layers(wave).features)
    assert all(name.startswith("backbone.") for name in runtime.state_dict())
    assert runtime.cfg.sample_rate == 16_000
    assert runtime.cfg.feature_d == M2D_D


def test_evar_finetunes_through_a_fresh_head(folder):
    from m2d_hub.clients.evar import RuntimeM2D

    runtime = RuntimeM2D(weight_file=folder, num_classes=3, freeze_embed=True, dur_frames=101)
    logits = runtime(noise(2, 32_000))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert runtime.backbone.blocks[0].attn.qkv.weight.grad is not None
    assert runtime.backbone.patch_embed.proj.weight.grad is None


@pytest.mark.parametrize(("features", "flat"), [("frames", False), ("tokens", True)])
def test_evar_gives_the_logits_of_the_model_for_both_kinds_of_head(tiny, tmp_path, features, flat):
    from m2d_hub.clients.evar import RuntimeM2D

    tiny.set_head(3, features=features)
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    tiny.eval().save_pretrained(tmp_path)
    runtime = RuntimeM2D(weight_file=tmp_path, flat_features=flat).eval()
    wave = noise(2, 50_000)
    close(runtime(wave).detach(), tiny.classify_waveform(wave).detach())


class EasyDict(dict):
    """EVAR's settings: a dictionary whose keys are attributes too, as easydict has them."""

    def __init__(self, values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        super().__setitem__(name, value)


# The settings of the model in EVAR's config/m2d.yaml
EVAR_YAML = {
    "audio_repr": "ar_m2d.AR_M2D",
    "feature_d": 3840,
    **{"sample_rate": 16_000, "n_fft": 400, "window_size": 400, "hop_size": 160},
    **{"n_mels": 80, "f_min": 50, "f_max": 8000, "window": "hanning", "mean": -7.1, "std": 4.2},
    **{"output_layers": [-1], "encoder_only": True, "dur_frames": None, "freeze_embed": None},
    **{"flat_features": False, "batch_size": 128, "training_mask": 0.0},
}


def evar(folder, **settings):
    from m2d_hub.clients.evar import RuntimeM2D

    cfg = EasyDict(EVAR_YAML | {"weight_file": folder} | settings)
    return RuntimeM2D(cfg=cfg, weight_file=cfg.weight_file), cfg


def test_evars_own_settings_are_filled_in_for_evar_to_read(folder):
    runtime, cfg = evar(folder)
    assert runtime.cfg is cfg
    assert cfg["feature_d"] == cfg.feature_d == M2D_D
    assert (cfg.input_size, cfg.patch_size, cfg.batch_size) == ((80, 208), (16, 16), 128)


@pytest.mark.parametrize(
    ("settings", "feature_d"),
    [
        ({"flat_features": True}, 64),
        ({"output_layers": None}, 2 * M2D_D),
        ({"output_layers": [0, 1]}, 2 * M2D_D),
    ],
)
def test_evars_feature_settings_set_the_width(folder, settings, feature_d):
    runtime, cfg = evar(folder, **settings)
    layers = runtime.encode_lms(runtime.to_normalized_spec(noise(1, 16_000)), return_layers=True)
    stacked = torch.cat([layers[index] for index in cfg.output_layers or range(len(layers))], dim=-1)
    assert cfg.feature_d == stacked.shape[-1] == feature_d


def test_evars_model_settings_apply(tiny, tmp_path):
    tiny.set_head(5)
    tiny.save_pretrained(tmp_path)
    settings = {"freeze_embed": True, "dur_frames": 101, "mean": -3.0, "std": 2.0}
    runtime, cfg = evar(tmp_path, **settings)
    assert not any(weight.requires_grad for weight in runtime.backbone.patch_embed.parameters())
    assert cfg.input_size == runtime.backbone.config.input_size == (80, 101)
    close(runtime.normalize_batch(torch.tensor([-3.0, -1.0])), [0.0, 1.0])
    assert (cfg.mean, cfg.std) == (-3.0, 2.0)
    assert runtime.head is None
    assert evar(tmp_path, encoder_only=False)[0](noise(1, 16_000)).shape == (1, 5)
    assert evar(tmp_path, encoder_only=False, num_classes=7)[0](noise(1, 16_000)).shape == (1, 7)


@pytest.mark.parametrize("samples", [16_000, 70_000])  # one window, and three
def test_evars_training_mask_drops_tokens_in_training_alone(folder, tiny, samples):
    runtime, cfg = evar(folder, training_mask=0.5)
    assert cfg.feature_d == 64  # the mean over tokens, as in the paper's section IV-B
    log_mel = runtime.to_normalized_spec(noise(3, samples))
    whole = runtime.eval().encode_lms(log_mel)
    assert whole.shape[1] == 5 * tiny.encode_frames(noise(1, samples)).features.shape[1]
    runtime.train()
    torch.manual_seed(0)
    counts = [runtime.encode_lms(log_mel).shape for _ in range(40)]
    assert {(clips, width) for clips, _, width in counts} == {(3, 64)}
    assert np.mean([tokens for _, tokens, _ in counts]) == pytest.approx(whole.shape[1] / 2, rel=0.15)
    torch.manual_seed(0)
    first = runtime.encode_lms(log_mel)
    torch.manual_seed(0)
    assert torch.equal(first, runtime.encode_lms(log_mel, return_layers=True)[-1])
    first.sum().backward()
    assert runtime.backbone.patch_embed.proj.weight.grad is not None


def test_with_a_training_mask_a_new_head_takes_tokens(tiny, tmp_path):
    tiny.set_head(3)
    tiny.save_pretrained(tmp_path)
    settings = {"training_mask": 0.5, "encoder_only": False}
    runtime, _ = evar(tmp_path, num_classes=3, **settings)
    for training in (True, False):
        assert runtime.train(training)(noise(2, 16_000)).shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training_mask": 1.0}, r"training_mask must be from 0 to below 1, got 1\.0"),
        ({"training_mask": "half"}, "training_mask must be from 0 to below 1, got 'half'"),
        ({"sample_rate": 32_000}, r"cfg\.sample_rate is 32000, but .* was trained with 16000"),
        ({"f_max": 7_600}, r"cfg\.f_max is 7600, but .* was trained with 8000"),
        ({"std": float("nan")}, "std must be a finite number"),
    ],
)
def test_evars_invalid_settings_are_refused_by_name(folder, settings, message):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        evar(folder, **settings)


def test_s3prl_uses_one_window_per_clip_if_the_model_does(tiny, tmp_path):
    from m2d_hub.clients.s3prl import UpstreamExpert

    tiny.set_window(float("inf"))
    tiny.save_pretrained(tmp_path)
    wave = noise(1, 50_000)
    states = UpstreamExpert(ckpt=tmp_path)([wave[0]])["hidden_states"]
    close(torch.stack(states).detach(), tiny.encode_layers(wave).features)


# s3prl: s3prl/nn/upstream.py and s3prl/util/pseudo_data.py


def test_s3prl_hidden_states_are_every_blocks_frames_whatever_the_neighbours(folder, tiny):
    from m2d_hub.clients.s3prl import UpstreamExpert

    expert = UpstreamExpert(ckpt=folder, refresh=True)
    assert expert.get_downsample_rates("hidden_states") == 2560
    wavs = [noise(70_000), noise(800), noise(16_000)]
    states = expert(wavs)["hidden_states"]
    assert [state.shape for state in states] == [(3, 28, M2D_D)] * 2
    for index, wav in enumerate(wavs):
        alone = tiny.encode_layers(wav).features[:, 0]
        close(torch.stack([state[index, : alone.shape[1]] for state in states]).detach(), alone)
    states[0].sum().backward()
    assert expert.model.encoder.blocks[0].mlp.fc1.weight.grad is not None


@pytest.fixture
def s3prl(monkeypatch, tmp_path):
    """A stand-in for s3prl 0.4.18 that imports from torchaudio what that imports; its text may be changed."""
    import torchaudio

    before = dict(vars(torchaudio))
    package = tmp_path / "s3prl"
    package.mkdir()
    for name in ("__init__", "nn"):
        (package / f"{name}.py").write_text("")
    hub = package / "hub.py"
    hub.write_text(
        "import torchaudio\n"
        "from torchaudio.sox_effects import apply_effects_file\n"
        "torchaudio.set_audio_backend('sox_io')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield hub
    for name in [name for name in sys.modules if name.split(".")[0] == "s3prl"]:
        del sys.modules[name]
    sys.modules.pop("torchaudio.sox_effects", None)
    for name in vars(torchaudio).keys() - before:
        delattr(torchaudio, name)


def test_s3prl_register_puts_the_upstream_into_its_hub(folder, s3prl):
    from m2d_hub.clients.s3prl import UpstreamExpert, register

    register("mine", folder, mean=-11.51, std=4.31)
    import s3prl.hub

    expert = s3prl.hub.mine(refresh=False)
    assert isinstance(expert, UpstreamExpert)
    statistics = expert.model.frontend.config
    assert (statistics.mean, statistics.std) == (-11.51, 4.31)
    with pytest.raises(m2d_hub.ConfigError, match=r"needs torchaudio\.sox_effects, which torchaudio has"):
        s3prl.hub.apply_effects_file("a.wav")


@pytest.mark.parametrize("fault", ["import gone_library", "import torchaudio; torchaudio.another_name"])
def test_s3prl_that_cannot_be_imported_is_reported(s3prl, fault):
    from m2d_hub.clients.s3prl import register

    s3prl.write_text(fault)
    with pytest.raises(m2d_hub.ConfigError, match=r"cannot be imported \(.*pip install s3prl.*0\.4\.18"):
        register()


# X-ARES: xares/audio_encoder_checker.py


def test_xares_finds_one_encoder_that_passes_its_checks(folder, tiny, monkeypatch):
    from m2d_hub.clients import xares

    assert [name for name in vars(xares) if name.endswith("Encoder")] == ["M2DEncoder"]
    monkeypatch.setenv("M2D_XARES_MODEL", folder)
    encoder = xares.M2DEncoder()
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, M2D_D, 160)
    audio = noise(2, 50_000)
    close(encoder(audio), tiny.encode_frames(audio).features)


# Hugging Face datasets


@pytest.mark.filterwarnings("error:an array of two rows")
def test_datasets_embed_accepts_a_column(folder, tiny):
    datasets = pytest.importorskip("datasets", reason="needs m2d-hub[datasets]")
    from m2d_hub.clients.datasets import embed

    stereo = noise(2, 8_000).numpy()
    audio = [{"array": stereo, "sampling_rate": 8_000}, {"array": stereo[:, :500], "sampling_rate": 32_000}]
    rows = datasets.Dataset.from_dict({"audio": audio})
    expected = torch.cat(
        [
            tiny.encode_clip(stereo.mean(axis=0), sample_rate=8_000),
            tiny.encode_clip(stereo[:, :500].mean(axis=0), sample_rate=32_000),
        ]
    )
    close(embed(rows["audio"], name=folder), expected)
    close(embed(rows[:]["audio"], name=folder), expected)


# Integers: every client scales them as encode_clip does, or refuses them


def of_evar(folder, wave):
    from m2d_hub.clients.evar import RuntimeM2D

    return RuntimeM2D(weight_file=folder).encode(torch.from_numpy(wave)[None]).mean(dim=1).detach()


def of_s3prl(folder, wave):
    from m2d_hub.clients.s3prl import UpstreamExpert

    return UpstreamExpert(ckpt=folder)([torch.from_numpy(wave)])["hidden_states"][-1].mean(dim=1).detach()


def of_xares(folder, wave):
    from m2d_hub.clients.xares import M2DEncoder

    return M2DEncoder(folder)(torch.from_numpy(wave)).mean(dim=1)


def of_datasets_in_stereo(folder, wave):
    from m2d_hub.clients.datasets import embed

    return embed([np.stack([wave, wave])], 16_000, folder)


def of_ray_in_stereo(folder, wave):
    from m2d_hub.clients.ray import EmbedAudio

    return EmbedAudio(folder)({"audio": np.stack([wave, wave])[None]})["embedding"]


def of_sklearn(folder, wave):
    pytest.importorskip("sklearn", reason="needs m2d-hub[sklearn]")
    from m2d_hub.clients.sklearn import M2DEmbedder

    return M2DEmbedder(folder).transform(wave[None])


@pytest.mark.parametrize(
    "embed", [of_evar, of_s3prl, of_xares, of_datasets_in_stereo, of_ray_in_stereo, of_sklearn]
)
def test_integers_are_scaled_by_every_client(embed, folder, tiny):
    wave = noise(9_000).numpy().clip(-0.9, 0.9)
    for dtype in (np.int16, np.int32):
        integers = (wave * 2.0 ** (8 * np.dtype(dtype).itemsize - 1)).astype(dtype)
        close(embed(folder, integers), tiny.encode_clip(torch.from_numpy(wave)), atol=5e-3)


# Ray Data: the actor is an ordinary class; Ray itself runs in tests/hub/test_ray.py


def test_ray_actor_embeds_paths_bytes_and_waveforms(folder, tiny, clips):
    from m2d_hub.clients.ray import EmbedAudio

    paths = sorted(str(path) for path in clips.glob("*.wav"))[:2]
    actor = EmbedAudio(folder)
    expected = tiny.encode_clip(paths)
    given = actor({"path": np.array(paths), "id": np.arange(2)})
    close(given["embedding"], expected)
    assert given["id"].tolist() == [0, 1]
    as_bytes = np.array([Path(path).read_bytes() for path in paths], dtype=object)
    close(actor({"bytes": as_bytes})["embedding"], expected)
    waves = noise(2, 16_000)
    close(actor({"audio": waves.numpy()})["embedding"], tiny.encode_clip(waves))


def test_ray_actor_reports_unreadable_files(folder, tiny, clips, tmp_path):
    from m2d_hub.clients.ray import EmbedAudio

    good = str(next(clips.glob("*.wav")))
    (tmp_path / "bad.wav").write_text("no audio")
    given = EmbedAudio(folder)({"path": np.array([good, str(tmp_path / "bad.wav")])})
    close(given["embedding"][:1], tiny.encode_clip(good))
    assert np.isnan(given["embedding"][1]).all()
    assert given["error"][0] == ""
    assert "bad.wav" in given["error"][1]


def test_ray_actor_names_the_columns_that_it_needs(folder):
    from m2d_hub.clients.ray import EmbedAudio

    with pytest.raises(m2d_hub.ConfigError, match=r"rows have no column path or .*, but text"):
        EmbedAudio(folder)({"text": np.array(["a"])})


@pytest.mark.parametrize(
    ("program", "name"),
    [("mteb", "M2DWrapper"), ("sklearn", "M2DEmbedder"), ("transformers", "register")],
)
def test_a_missing_program_is_named_with_its_extra(program, name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"m2d_hub.clients.{program}", raising=False)
    for module in [program, *(module for module in sys.modules if module.startswith(f"{program}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(m2d_hub.ConfigError, match=rf"pip install 'm2d-hub\[{program}\]'"):
        getattr(importlib.import_module(f"m2d_hub.clients.{program}"), name)()
