"""A model's name has one meaning wherever it is given: aliases, paths, and networks with random weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from m2d_training.pretraining.weights import start_weights

import m2d_hub
from m2d_hub import ConfigError, DownloadError, UnknownModelError
from m2d_hub.cli.main import main
from m2d_hub.clients.sklearn import M2DEmbedder
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import as_argument, canonical_name, resolve

ALIAS = "m2d-mini"  # its weights are in the package, with 192 channels
CLIP = Path(__file__).parents[1] / "data" / "tabla_stroke.flac"


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    """A working folder with a model of 64 channels under an alias's name, and an own cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    tiny.save_pretrained(tmp_path / ALIAS)
    tiny.save_pretrained(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WIDTHS = {
    ALIAS: 192,
    f"./{ALIAS}": 64,
    Path(ALIAS): 64,
    os.path.join(".", ALIAS, "model.safetensors"): 64,
    "own": 64,
}


def test_a_name_means_the_same_to_load_model_clients_commands_and_training(here):
    for name, width in WIDTHS.items():
        assert m2d_hub.load_model(name, device="cpu").embed_dim == width
        assert M2DEmbedder(name, device="cpu").fit([]).n_features_out_ % width == 0
        if "safetensors" not in str(name):
            assert start_weights(name)["cls_token"].shape[-1] == width
        if isinstance(name, str):
            answer = CliRunner().invoke(main, ["embed", str(CLIP), "--model", name, "--out", f"{width}.npz"])
            assert answer.exit_code == 0, answer.output
            with np.load(f"{width}.npz") as arrays:
                recorded = json.loads(str(arrays["settings"]))["model"]
            assert recorded == (ALIAS if width == 192 else os.path.abspath(name)) == canonical_name(name)
            os.unlink(f"{width}.npz")


def test_convert_prints_how_to_load_its_output(here, publish):
    answer = CliRunner().invoke(main, ["convert", str(publish(embed_dim=64, depth=2)), "--out", "m2d-as-0.7"])
    assert "load_model('./m2d-as-0.7')" in answer.output
    assert m2d_hub.load_model(as_argument("m2d-as-0.7"), device="cpu").embed_dim == 64
    assert as_argument(here / "elsewhere") == str(here / "elsewhere")


@pytest.mark.parametrize("look_up", [resolve, start_weights, m2d_hub.load_model, m2d_hub.M2D.from_pretrained])
def test_a_missing_path_is_not_taken_for_an_alias_and_an_unknown_word_lists_the_models(here, look_up):
    for name in ("./m2d-as-0.7", Path("m2d-as-0.7"), "lost.pth", "~/lost/own"):
        with pytest.raises(UnknownModelError, match="does not exist"):
            look_up(name)
    with pytest.raises(UnknownModelError, match=r"Available: .*m2d-as-0\.7"):
        look_up("m2d-as-0.8")


def test_from_pretrained_accepts_the_same_names_and_org_repo(here, monkeypatch):
    for name in ("own", "m2d-mini", "random:m2d-mini"):
        found = m2d_hub.M2D.from_pretrained(name).encoder.state_dict()
        expected = m2d_hub.load_model(name, device="cpu").encoder.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(DownloadError, match="'org/missing' is not in the cache"):
        m2d_hub.M2D.from_pretrained("org/missing", cache_dir=here / "cache", local_files_only=True)


def test_random_weights_have_the_models_sizes_and_are_those_of_seed_0(here):
    torch.manual_seed(7)
    drawn_before = torch.rand(1)
    torch.manual_seed(7)
    model = m2d_hub.load_model("random:own", device="cpu")
    assert torch.equal(torch.rand(1), drawn_before)  # the caller's random state is unchanged
    sizes = m2d_hub.load_model("random:80x208p16x8p32k", device="cpu").config
    assert (sizes.encoder.input_size, sizes.encoder.patch_size) == ((80, 208), (16, 8))
    assert (sizes.frontend.sample_rate, sizes.encoder.embed_dim) == (32_000, 768)
    trained = m2d_hub.load_model("own", device="cpu")
    assert (model.config.encoder, model.config.frontend) == (trained.config.encoder, trained.config.frontend)
    assert model.head is None and model.config.license is None
    torch.manual_seed(0)
    expected = m2d_hub.M2D(model.config).encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.encoder.state_dict().items())


def test_random_weights_are_a_start_with_a_hash_and_a_canonical_name(here, publish):
    assert start_weights("random:own")["cls_token"].shape == (1, 1, 64)
    assert sha256_of_model(resolve("random:own")) != sha256_of_model(Path("own"))
    assert canonical_name("random:own") == f"random:{os.path.abspath('own')}"
    assert canonical_name("random:m2d-0.7") == "random:m2d-0.7"
    assert m2d_hub.load_model("random:own", device="cpu").config.name == canonical_name("random:own")
    assert m2d_hub.load_model(f"random:{publish(embed_dim=64, depth=2)}", device="cpu").embed_dim == 64


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("random:m2d-0.9", {}, UnknownModelError, "Unknown model 'm2d-0.9'. Available: "),
        ("random:1024x1000000p1x1", {}, ConfigError, "has 1,024,000,000 patches; a random network may have"),
        (
            "random:m2d-0.7",
            {"revision": "main"},
            ConfigError,
            "revision='main' is only for 'hf-hub:org/repo'",
        ),
    ],
)
def test_names_without_usable_sizes_are_refused(here, name, options, error, message):
    with pytest.raises(error, match=message):
        m2d_hub.load_model(name, device="cpu", **options)
