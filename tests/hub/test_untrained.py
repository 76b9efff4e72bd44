"""``random:NAME``: a network of a model's sizes with weights of a fixed seed, wherever a model is named."""

import os

import pytest
import torch
from m2d_training.pretraining.start import start_weights

import m2d_hub
from m2d_hub.pretrained.folder import sha256_of_model
from m2d_hub.pretrained.locate import canonical_name, locate
from m2d_hub.pretrained.registry import MODELS
from m2d_hub.pretrained.untrained import told_config


@pytest.fixture
def own(tmp_path, tiny, monkeypatch):
    """Folder of a model; the cache lies beside it."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    torch.nn.init.ones_(tiny.encoder.blocks[0].mlp.fc1.weight)
    tiny.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_a_folders_sizes_with_other_weights(own):
    trained = m2d_hub.load_model(own, device="cpu")
    drawn = m2d_hub.load_model(f"random:{own}", device="cpu")
    assert drawn.config.encoder == trained.config.encoder
    assert drawn.config.frontend == trained.config.frontend
    assert drawn.head is None and drawn.config.license is None
    assert not torch.equal(drawn.encoder.blocks[0].mlp.fc1.weight, trained.encoder.blocks[0].mlp.fc1.weight)


def test_the_weights_are_those_of_a_new_network_with_seed_0(own):
    drawn = m2d_hub.load_model(f"random:{own}", device="cpu")
    torch.manual_seed(0)
    expected = m2d_hub.M2D(drawn.config).encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in drawn.encoder.state_dict().items())


def test_they_are_the_same_anywhere_and_the_callers_draws_go_on(own, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = m2d_hub.load_model(f"random:{own}", device="cpu", cache_dir=tmp_path / "one")
    assert torch.equal(torch.rand(1), expected)
    second = m2d_hub.load_model(f"random:{own}", device="cpu", cache_dir=tmp_path / "two")
    assert torch.equal(first.encoder.blocks[1].attn.qkv.weight, second.encoder.blocks[1].attn.qkv.weight)


def test_it_can_be_a_start_and_has_a_hash_as_any_model(own):
    assert start_weights(f"random:{own}")["cls_token"].shape == (1, 1, 64)
    assert sha256_of_model(locate(f"random:{own}")) != sha256_of_model(own)


def test_the_packaged_model_and_a_published_file_have_theirs(own, publish):
    mini = m2d_hub.load_model("m2d-mini", device="cpu")
    assert m2d_hub.load_model("random:m2d-mini", device="cpu").config.encoder == mini.config.encoder
    published = publish(embed_dim=64, depth=2)
    assert m2d_hub.load_model(f"random:{published}", device="cpu").embed_dim == 64


@pytest.mark.parametrize("alias", [name for name, info in MODELS.items() if not info.is_packaged])
def test_an_aliass_sizes_are_the_tables(alias):
    config, info = told_config(alias), MODELS[alias]
    assert (config.encoder.input_size, config.encoder.patch_size) == (info.input_size, info.patch_size)
    assert (config.encoder.embed_dim, config.frontend.sample_rate) == (info.embed_dim, info.sample_rate)


def test_sizes_can_be_said():
    config = told_config("80x208p16x8p32k")
    assert (config.encoder.input_size, config.encoder.patch_size) == ((80, 208), (16, 8))
    assert (config.frontend.sample_rate, config.encoder.embed_dim) == (32_000, 768)


def test_it_is_recorded_by_its_own_name(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert canonical_name("random:own") == f"random:{os.path.abspath('own')}"
    assert canonical_name("random:m2d-0.7") == "random:m2d-0.7"
    assert m2d_hub.load_model("random:own", device="cpu").config.name == f"random:{os.path.abspath('own')}"


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("random:m2d-0.9", {}, m2d_hub.UnknownModelError, "Unknown model 'm2d-0.9'. Available: "),
        ("random:./lost", {}, m2d_hub.UnknownModelError, "lost does not exist"),
        ("random:81x208p16x16", {}, m2d_hub.ConfigError, "81 mels is not a multiple of 16"),
        ("random:m2d-0.7", {"revision": "main"}, m2d_hub.ConfigError, "revision='main' goes with 'hf-hub"),
    ],
)
def test_what_names_no_sizes_is_refused(own, name, options, error, message):
    with pytest.raises(error, match=message):
        m2d_hub.load_model(name, device="cpu", **options)
