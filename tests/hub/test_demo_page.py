"""The demo page: functions behind its components, and the server that answers its own address only."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import ClapConfig, EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.corpus.index import open_index

gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
pytest.importorskip("matplotlib")

from m2d_hub.demo import page, server  # noqa: E402 - need gradio

FOLDER = ["speech_it_1.wav", "speech_it_2.wav", "tabla_stroke.flac", "birds_1.ogg"]


def small(**settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=64, depth=1)
    return m2d_hub.M2D(ModelConfig(encoder=encoder, name="small", **settings)).eval()


@pytest.fixture(scope="module")
def library(clips, tmp_path_factory):
    """Index of a folder of clips and a file that cannot be read, with the model that embedded it."""
    folder = tmp_path_factory.mktemp("library") / "<b>sounds"
    folder.mkdir()
    for name in FOLDER:
        shutil.copy(clips / name, folder)
    (folder / "broken.wav").write_text("no sound")
    model = folder.parent / "model"
    small(head=HeadConfig(3), labels=("dog", "cat", "<i>")).save_pretrained(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder.parent / "cache"))
        return open_index(folder, model, "cpu"), m2d_hub.load_model(model, device="cpu")


def test_one_sound_is_answered_with_its_plot_tags_and_similar_sounds(library, clips):
    index, model = library
    path = clips / "speech_it_1.wav"
    figure, tags, *players = page.Answers(model, index).one(str(path))
    assert figure.get_suptitle() == "speech_it_1.wav" and len(figure.axes) == 6
    [expected] = model.classify(path, top_k=3)
    assert tags == {tag.label: pytest.approx(tag.score, abs=1e-5) for tag in expected}
    assert [player.visible for player in players] == [True] * 4 + [False]
    assert players[0].label == "1.000  speech_it_1.wav"
    assert {player.label[7:] for player in players[:4]} == set(FOLDER)
    assert list(index.failed) == [str(index.folder / "broken.wav")]


def test_sound_is_used_up_to_the_limit(tmp_path):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(75 * 8_000), 8_000)
    figure, *_ = page.Answers(small(), None).one(str(tmp_path / "long.wav"))
    assert figure.axes[1].get_xlim()[1] == pytest.approx(page.MAX_SECONDS, abs=0.2)


def test_two_sounds_are_compared_by_the_cosine_of_their_embeddings(clips):
    model = small()
    paths = [str(clips / name) for name in ("speech_it_1.wav", "tabla_stroke.flac")]
    one, other = model.encode_clip(paths).double().numpy()
    figure, score = page.Answers(model, None).two(*paths)
    assert score == f"{one @ other / np.linalg.norm(one) / np.linalg.norm(other):.3f}"
    assert figure.axes[0].get_xlabel() == "time in speech_it_1.wav, s"


def test_texts_are_scored_by_a_model_with_a_text_encoder(clips, monkeypatch):
    torch.manual_seed(0)
    model = small(clap=ClapConfig(dim=4, audio_hidden_dim=8, text_dim=6, text_hidden_dim=8))
    path = str(clips / "tabla_stroke.flac")
    clip = model.encode_audio_text_space(path, normalize=True)
    monkeypatch.setattr(model.clap, "encode_text", lambda texts: torch.cat([-clip, clip]))
    answers = page.Answers(model, None)
    assert list(answers.words(path, "a dog barks\n\n a drum \n")) == ["a drum", "a dog barks"]
    assert "Descriptions" in json.dumps(page.build_page(answers, "small").get_config_file())


def test_errors_are_html_with_the_names_of_uploads(tmp_path):
    broken = tmp_path / "a1b2c3" / "<i>broken.wav"
    broken.parent.mkdir()
    broken.write_text("no sound")
    answers = page.Answers(small(), None)
    for answer in (answers.one, lambda path: answers.two(path, path), lambda path: answers.words(path, "a")):
        with pytest.raises(gradio.Error, match=r"'&lt;i&gt;broken\.wav cannot be read"):
            answer(str(broken))
    assert answers.one(None)[:2] == [None, None] and answers.two(None, "a") == (None, None)


def test_names_of_the_folder_and_the_model_are_escaped(library):
    config = page.build_page(page.Answers(library[1], library[0]), "<b>model").get_config_file()
    [heading] = [part["props"]["value"] for part in config["components"] if part["type"] == "html"]
    assert "&lt;b&gt;model" in heading and "&lt;b&gt;sounds" in heading and "<b>" not in heading


@contextlib.contextmanager
def served(host="127.0.0.1"):
    """A client of a running page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        running, listener = server.create_server(small(), "small", None, host=host)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=server.url_of(listener), timeout=60) as client:
                yield client
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client():
    with served() as running:
        yield running


def upload(client, content=b"x", **headers):
    return client.post("/gradio_api/upload", files=[("files", ("a.wav", content))], headers=headers)


def test_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200 and "<script" in answer.text
    loaded = [tag for tag in answer.text.split("<") if tag.startswith(("script", "link", "img", "iframe"))]
    assert not [tag for tag in loaded if 'src="http' in tag or 'href="http' in tag or 'src="//' in tag]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_only_requests_to_the_pages_own_address_are_answered(client, headers, status):
    headers = {name: value.format(port=client.base_url.port) for name, value in headers.items()}
    assert client.get("/config", headers=headers).status_code == status
    assert upload(client, **headers).status_code == status


def test_uploads_are_limited_and_removed(monkeypatch):
    with served() as client:
        [path] = upload(client).json()
        assert upload(client, b"x" * (51 << 20)).status_code == 413
        chunked = client.post("/gradio_api/upload", content=iter([b"x"]))
        assert chunked.status_code == 413
        monkeypatch.setattr(server, "MAX_STORED_BYTES", 100)
        assert upload(client).status_code == 507
        assert Path(path).read_text() == "x"
    assert not Path(path).exists()


@pytest.mark.skipif(not socket.has_ipv6, reason="IPv6 is not available")
def test_ipv6_address_is_served():
    with served("::1") as client:
        assert str(client.base_url).startswith("http://[::1]:") and client.get("/config").status_code == 200


def test_wildcard_host_answers_addresses_but_no_other_names():
    with served("0.0.0.0") as client:
        port = client.base_url.port
        for host, status in [("192.0.2.1", 200), ("localhost", 200), ("evil.example", 403)]:
            assert client.get("/config", headers={"Host": f"{host}:{port}"}).status_code == status


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no.such.host.invalid"])
def test_address_that_cannot_be_bound_is_an_error(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(m2d_hub.ConfigError, match=rf"{host}, port {port}, .*use another --port"):
            server.create_server(small(), "small", None, host=host, port=port)


def test_missing_gradio_is_reported_before_any_work(monkeypatch):
    monkeypatch.setattr(m2d_hub.io, "_is_installed", lambda name: name != "gradio")
    result = CliRunner().invoke(main, ["demo", "--model", "no such model"])
    assert result.exit_code == 1 and "pip install 'm2d-hub[demo]'" in result.output


@pytest.mark.slow
def test_command_serves_until_it_is_stopped_and_leaves_no_uploads(tmp_path):
    command = [sys.executable, "-m", "m2d_hub", "demo", "--device", "cpu"]
    environment = {"TMPDIR": str(tmp_path), "PATH": "", "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        url = process.stdout.readline().split()[1]
        assert upload(httpx.Client(base_url=url, timeout=60)).status_code == 200
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM and not list(tmp_path.glob("m2d-hub-demo*"))
