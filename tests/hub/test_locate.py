"""A model's name means the same wherever it is given."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from m2d_training.pretraining.start import start_weights

import m2d_hub
from m2d_hub import DownloadError
from m2d_hub.cli.main import main
from m2d_hub.clients.sklearn import M2DEmbedder
from m2d_hub.pretrained.locate import as_argument, canonical_name, locate

ALIAS = "m2d-mini"  # its weights are in the package, with 192 channels
CLIP = Path(__file__).parents[1] / "data" / "tabla_stroke.flac"


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    """A folder to work in, where a model of 64 channels lies under an alias's name."""
    tiny.save_pretrained(tmp_path / ALIAS)
    tiny.save_pretrained(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WIDTHS = [
    (ALIAS, 192),
    (f"./{ALIAS}", 64),
    (Path(ALIAS), 64),
    (os.path.join(".", ALIAS, "model.safetensors"), 64),
    ("own", 64),
    (Path("own"), 64),
]


@pytest.mark.parametrize(("name", "width"), WIDTHS)
def test_load_model_and_clients_mean_the_same(here, name, width):
    assert m2d_hub.load_model(name, device="cpu").embed_dim == width
    assert M2DEmbedder(name, device="cpu").fit([]).n_features_out_ % width == 0


@pytest.mark.parametrize(("name", "width"), [pair for pair in WIDTHS if "safetensors" not in str(pair[0])])
def test_a_start_means_the_same(here, name, width):
    assert start_weights(name)["cls_token"].shape[-1] == width


@pytest.mark.parametrize(("name", "width"), [pair for pair in WIDTHS if isinstance(pair[0], str)])
def test_commands_mean_and_record_the_same(here, name, width):
    answer = CliRunner().invoke(main, ["embed", str(CLIP), "--model", name, "--out", "out.npz"])
    assert answer.exit_code == 0, answer.output
    with np.load("out.npz") as arrays:
        assert arrays["embedding"].shape[1] == {192: 8 * 192, 64: 5 * 64}[width]
        recorded = json.loads(str(arrays["settings"]))["model"]
    assert recorded == (ALIAS if width == 192 else os.path.abspath(name)) == canonical_name(name)


def test_convert_says_how_to_load_what_it_wrote(here, publish):
    published = publish(embed_dim=64, depth=2)
    answer = CliRunner().invoke(main, ["convert", str(published), "--out", "m2d-as-0.7"])
    assert "load_model('./m2d-as-0.7')" in answer.output
    assert m2d_hub.load_model(as_argument("m2d-as-0.7"), device="cpu").embed_dim == 64
    assert as_argument(here / "elsewhere") == str(here / "elsewhere")


@pytest.mark.parametrize(
    "name", ["./m2d-as-0.7", "nowhere/m2d-mini", Path("m2d-as-0.7"), "lost.pth", "~/lost/own"]
)
def test_a_path_that_is_not_there_is_not_taken_for_an_alias(here, name):
    for look in (locate, start_weights, m2d_hub.load_model):
        with pytest.raises(m2d_hub.UnknownModelError, match="does not exist"):
            look(name)


def test_an_unknown_word_lists_the_models(here):
    for look in (locate, start_weights, m2d_hub.load_model):
        with pytest.raises(m2d_hub.UnknownModelError, match="Available: "):
            look("m2d-as-0.8")


def test_from_pretrained_goes_the_same_way(here, monkeypatch):
    assert m2d_hub.M2D.from_pretrained("own").embed_dim == 64
    assert torch.is_tensor(m2d_hub.M2D.from_pretrained(here / "own").encoder.cls_token)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(m2d_hub.DownloadError, match="'org/missing' is not in the cache"):
        m2d_hub.M2D.from_pretrained("org/missing", cache_dir=here / "cache", local_files_only=True)


def test_from_pretrained_takes_names_as_load_model_does(here):
    for name in ("m2d-mini", "random:m2d-mini"):
        found = m2d_hub.M2D.from_pretrained(name)
        expected = m2d_hub.load_model(name, device="cpu")
        assert torch.equal(
            found.encoder.blocks[0].attn.qkv.weight, expected.encoder.blocks[0].attn.qkv.weight
        )
    with pytest.raises(m2d_hub.UnknownModelError, match=r"Available: .*m2d-mini"):
        m2d_hub.M2D.from_pretrained("m2d-as-0.8")
    for name in ("./gone", "~/gone/folder", "/gone"):
        with pytest.raises(m2d_hub.UnknownModelError, match="does not exist"):
            m2d_hub.M2D.from_pretrained(name)


def test_without_a_home_models_are_told_and_the_packaged_one_loads(monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "~nosuchuser/.cache/huggingface")
    assert not m2d_hub.model_info("m2d-0.7").on_disk
    assert m2d_hub.model_info("m2d-mini").on_disk
    with pytest.raises(DownloadError, match=r"there is no home folder .* cache_dir=FOLDER"):
        m2d_hub.load_model("m2d-0.7", local_files_only=True)
