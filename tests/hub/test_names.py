"""Models by name: published aliases, Hugging Face repositories, and publishing."""

from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils
import pytest
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, DownloadError, UnknownModelError
from m2d_hub.pretrained.publish import model_card
from m2d_hub.pretrained.registry import MODELS, NTT_LICENSE

from .release_server import (
    Fault,
    checkpoint_bytes,
    clap_tensors,
    encoder_tensors,
    fine_tuned_tensors,
    pretraining_tensors,
    release_zip,
    tiny_info,
)

TINY = tiny_info("tiny", pretraining=True, contents="full")
TAGGER = tiny_info("tiny-tagger", num_classes=6)
CLAP = tiny_info("tiny-clap", text_space=True)
TENSORS = {
    "tiny": lambda: encoder_tensors() | pretraining_tensors(),
    "tiny-tagger": lambda: fine_tuned_tensors(),
    "tiny-clap": lambda: encoder_tensors() | clap_tensors(),
}


@pytest.fixture
def server(release_host, monkeypatch, tmp_path):
    """The release host and the Hugging Face hub, with an empty cache in ``tmp_path / "home"``."""
    home = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", release_host.url)
    template = release_host.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for info in (TINY, TAGGER, CLAP):
        monkeypatch.setitem(MODELS, info.name, info)
        release_host.files[f"/{info.url_path}"] = release_zip(info, TENSORS[info.name]())
    return release_host


@pytest.fixture
def waveform():
    return torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))


def load(name, **options):
    return m2d_hub.load_model(name, device="cpu", **options)


def put_in_repository(server, folder, name="lab/model", revision="main"):
    """Publish a model whose weights differ per revision."""
    torch.manual_seed(len(revision))
    config = ModelConfig(encoder=EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1), name=revision)
    model = m2d_hub.M2D(config)
    model.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.repositories.setdefault(name, {})[revision] = files
    return model.eval()


@pytest.mark.parametrize("name", ["tiny", "tiny-tagger", "tiny-clap"])
def test_converted_weights_give_the_same_numbers_as_unconverted_ones(server, tmp_path, waveform, name):
    folder = tmp_path / MODELS[name].folder
    folder.mkdir()
    (folder / "checkpoint-300.pth").write_bytes(checkpoint_bytes(TENSORS[name]()))
    converted, unconverted = load(name), load(folder)
    assert (converted.config.name, converted.config.license) == (name, NTT_LICENSE)
    assert converted.config.source == "https://github.com/nttcslab/m2d/releases/tag/v0.0.1"
    assert torch.equal(converted.encode_clip(waveform), unconverted.encode_clip(waveform))
    if name == "tiny-tagger":
        assert torch.equal(converted.classify_waveform(waveform), unconverted.classify_waveform(waveform))
    if name == "tiny-clap":
        spaces = [model.encode_audio_text_space(waveform) for model in (converted, unconverted)]
        assert torch.equal(*spaces)


def test_the_download_command_prints_the_folder_of_the_weights(server, tmp_path):
    result = CliRunner().invoke(main, ["download", "tiny"])
    assert result.exit_code == 0
    folder = tmp_path / "home" / "m2d_hub" / "tiny"
    assert result.stdout == f"{folder}\n"
    assert (folder / "model.safetensors").is_file()
    put_in_repository(server, tmp_path / "saved")
    folder = Path(CliRunner().invoke(main, ["download", "hf-hub:lab/model"]).stdout.strip())
    assert (folder / "model.safetensors").is_file()
    unknown = CliRunner().invoke(main, ["download", "m2d-9"])
    assert unknown.exit_code == 1 and "Error: Unknown model 'm2d-9'. Available: " in unknown.stderr
    assert f"tiny: {NTT_LICENSE}; https://github.com/nttcslab/m2d/releases/tag/v0.0.1" in result.stderr


def test_repository_loads_and_loads_again_offline(server, tmp_path, waveform, monkeypatch):
    expected = put_in_repository(server, tmp_path / "saved").encode_clip(waveform)
    assert torch.equal(load("hf-hub:lab/model").encode_clip(waveform), expected)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(server.requests)
    assert torch.equal(load("hf-hub:lab/model").encode_clip(waveform), expected)
    assert len(server.requests) == before


def test_revision_is_part_of_the_name_or_given(server, tmp_path):
    for revision in ("main", "tuned"):
        put_in_repository(server, tmp_path / revision, revision=revision)
    assert load("hf-hub:lab/model").config.name == "main"
    assert load("hf-hub:lab/model@tuned").config.name == "tuned"
    assert load("hf-hub:lab/model", revision="tuned").config.name == "tuned"
    with pytest.raises(ConfigError) as error:
        load("hf-hub:lab/model@tuned", revision="main")
    assert str(error.value) == (
        "'hf-hub:lab/model@tuned' names revision 'tuned', but revision='main' was given; keep one."
    )


@pytest.mark.parametrize("name", ["hf-hub:model", "hf-hub:a/b/c", "hf-hub:lab/model@"])
def test_a_malformed_repository_name_is_refused(server, name):
    with pytest.raises(UnknownModelError) as error:
        load(name)
    assert str(error.value) == (
        f"{name!r} is not the name of a Hugging Face repository. Write 'hf-hub:org/repo' or "
        "'hf-hub:org/repo@revision'."
    )


def test_errors_distinguish_missing_repositories_revisions_and_files(server, tmp_path):
    server.repositories["lab/other"] = {"main": {"config.json": b"{}"}}
    for name in ("hf-hub:lab/none", "hf-hub:lab/other@v9"):
        with pytest.raises(DownloadError, match=r"could not be downloaded \(.*Check its name and revision"):
            load(name)
    with pytest.raises(CheckpointError, match=r"'lab/other' lacks config\.json or model\.safetensors"):
        load("hf-hub:lab/other")


@pytest.mark.parametrize(
    "load_by", [load, m2d_hub.M2D.from_pretrained], ids=["load_model", "from_pretrained"]
)
def test_a_token_is_sent_to_the_hub(server, tmp_path, load_by):
    put_in_repository(server, tmp_path)
    name = "hf-hub:lab/model" if load_by is load else "lab/model"
    load_by(name, token="hf_of_this_call")
    assert {headers["authorization"] for *_, headers in server.requests} == {"Bearer hf_of_this_call"}


def test_errors_of_the_hub_are_reported(server, tmp_path, monkeypatch):
    put_in_repository(server, tmp_path / "saved")
    server.faults["/lab/model/resolve/main/config.json"] = [Fault(status=500)] * 20
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
    with pytest.raises(
        DownloadError, match=r"could not be downloaded \(Server error '500 Internal Server Error'"
    ):
        load("hf-hub:lab/model")


def test_repository_that_cannot_be_stored_names_the_cache(server, tmp_path):
    put_in_repository(server, tmp_path / "saved")
    (tmp_path / "file").touch()
    with pytest.raises(
        DownloadError, match=rf"^{tmp_path}/file/cache cannot be written \(.*cache_dir=FOLDER"
    ):
        load("hf-hub:lab/model", cache_dir=tmp_path / "file" / "cache")


def test_card_states_licence_metrics_library_and_use():
    config = ModelConfig(head=HeadConfig(50, activation="softmax"), name="esc", license="Apache-2.0")
    card = model_card(config, repo_id="lab/esc", metrics={"ESC-50": {"accuracy": 0.953}})
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "m2d_hub",
        "audio-classification",
    )
    assert {"audio", "m2d"} <= set(data.tags)
    result = data.eval_results[0]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("ESC-50", "accuracy", 0.953)
    assert 'load_model("hf-hub:lab/esc")' in card.text
    assert "| Head | 50 classes, softmax |" in card.text


def test_card_of_the_authors_weights_states_their_licence_and_release():
    source = "https://github.com/nttcslab/m2d/releases/tag/v0.1.0"
    card = model_card(ModelConfig(name="m2d-0.7", license=NTT_LICENSE, source=source))
    assert (card.data.license, card.data.license_link) == ("other", source)
    assert card.data.license_name == "ntt-evaluation-licence-non-commercial"
    assert f"{NTT_LICENSE}: the weights derive from the release {source}." in card.text


def test_pushed_model_comes_back_with_its_numbers_and_card(server, waveform):
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1)
    model = m2d_hub.M2D(ModelConfig(encoder=encoder, name="own", license="Apache-2.0")).eval()
    model.push_to_hub("lab/own", token="hf_test", metrics={"ESC-50": {"accuracy": 0.5}})
    assert torch.equal(load("hf-hub:lab/own").encode_clip(waveform), model.encode_clip(waveform))
    assert torch.equal(
        m2d_hub.M2D.from_pretrained("lab/own").encode_clip(waveform), model.encode_clip(waveform)
    )
    files = server.repositories["lab/own"]["main"]
    assert files.keys() == {"model.safetensors", "config.json", "README.md"}
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "type: accuracy\n      value: 0.5" in card
    assert 'load_model("hf-hub:lab/own")' in card


def test_pushing_the_authors_weights_is_refused_before_anything_is_sent(server):
    model = load("tiny")
    before = len(server.requests)
    with pytest.raises(
        ConfigError, match=r"forbids redistributing them\. If you have the right to publish them, state it"
    ):
        model.push_to_hub("lab/tiny", token="hf_test")
    assert len(server.requests) == before
    model.push_to_hub("lab/tiny", token="hf_test", have_right_to_publish=True)
    assert "ntt-evaluation-licence" in server.repositories["lab/tiny"]["main"]["README.md"].decode()


def test_an_upload_that_the_hub_refuses_or_cannot_receive_is_an_error_of_this_package(
    tiny, server, monkeypatch
):
    server.faults["/api/repos/create"] = [Fault(status=401)]
    with pytest.raises(DownloadError, match=r"'lab/own' could not be uploaded \(.*401"):
        tiny.push_to_hub("lab/own", token="hf_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"'lab/own' could not be uploaded \(.*Check the network"):
        tiny.push_to_hub("lab/own", token="hf_test")


def test_saving_keeps_a_card_that_is_there_and_can_upload(tiny, server, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("# mine")
    assert tiny.save_pretrained(tmp_path / "own", repo_id="lab/own", push_to_hub=True, token="hf_test")
    assert (tmp_path / "own" / "README.md").read_text() == "# mine"
    assert "# tiny" in server.repositories["lab/own"]["main"]["README.md"].decode()


def test_names_in_a_card_are_plain_text():
    hostile = "x\n# Heading <img src=//host/x.png> | [a](b) `c`"
    card = model_card(ModelConfig(name=hostile, license=hostile, source=f"https://host/{hostile}"))
    assert "\n# Heading" not in card.text
    assert "<img" not in card.text.replace("\\<", "") and "`c`" not in card.text.replace("\\`", "")
