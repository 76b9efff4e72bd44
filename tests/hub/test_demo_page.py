"""The demo page: functions behind its components, and the server that answers its own address only."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
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


def test_one_sound_is_answered_with_its_plot_tags_and_similar_sounds(library, clips, monkeypatch):
    index, model = library
    answers = page.Answers(model, index)
    path = clips / "speech_it_1.wav"
    monkeypatch.setattr(page, "MIN_CERTAIN_SCORE", 0.0)
    figure, tags, similar = answers.one(str(path))
    assert figure.get_suptitle() == "speech_it_1.wav" and len(figure.axes) == 6
    [expected] = model.classify(path, top_k=3)
    assert tags == {tag.label: pytest.approx(tag.score, abs=1e-5) for tag in expected}
    # The sound itself, which is in the folder, is not among them.
    assert {label[6:] for label, _ in similar.choices} == set(FOLDER) - {"speech_it_1.wav"}
    rate, samples = answers.excerpt(similar.choices[0][1])
    assert rate == 16_000 and samples.dtype == np.int16 and len(samples) <= 10 * rate
    assert answers.excerpt(str(clips / "tabla_loop.mp3")) is None  # not in the folder
    assert list(index.failed) == [str(index.folder / "broken.wav")]
    monkeypatch.setattr(page, "MIN_CERTAIN_SCORE", 1.0)
    assert answers.one(str(path))[1] == "Nothing certain"


def test_two_sounds_are_compared_by_the_cosine_of_their_embeddings(clips):
    model = small()
    paths = [str(clips / name) for name in ("speech_it_1.wav", "tabla_stroke.flac")]
    one, other = model.encode_clip(paths).double().numpy()
    figure, score = page.Answers(model, None).two(*paths)
    assert score == f"{one @ other / np.linalg.norm(one) / np.linalg.norm(other):.3f}"
    assert figure.axes[0].get_xlabel() == "time in speech_it_1.wav, s"


def test_errors_are_html_with_the_names_of_uploads(tmp_path):
    broken = tmp_path / "a1b2c3" / "<i>broken.wav"
    broken.parent.mkdir()
    broken.write_text("no sound")
    answers = page.Answers(small(), None)
    for answer in (answers.one, lambda path: answers.two(path, path)):
        with pytest.raises(gradio.Error, match=r"'&lt;i&gt;broken\.wav cannot be read"):
            answer(str(broken))
    assert answers.one(None)[:2] == [None, None] and answers.two(None, "a") == (None, None)


def test_names_of_the_folder_and_the_model_are_escaped(library):
    config = page.build_page(page.Answers(library[1], library[0]), "<b>model").get_config_file()
    [heading] = [part["props"]["value"] for part in config["components"] if part["type"] == "html"]
    assert "&lt;b&gt;model" in heading and "&lt;b&gt;sounds" in heading and "<b>" not in heading
    [examples] = [part["props"] for part in config["components"] if part["type"] == "dataset"]
    assert len(examples["samples"]) == 3


@pytest.fixture(scope="module")
def address():
    """Address of a running page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = server.create_server(small(), "small", None, "127.0.0.1", port)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"127.0.0.1:{port}"
    running.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Host": "192.0.2.1:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_requests_of_other_web_sites_are_refused(address, headers, status):
    headers = {name: value.format(port=address.split(":")[1]) for name, value in headers.items()}
    answer = httpx.get(f"http://{address}/", headers=headers, timeout=60)
    assert answer.status_code == status
    loaded = [tag for tag in answer.text.split("<") if tag.startswith(("script", "link", "img", "iframe"))]
    assert not [tag for tag in loaded if 'src="http' in tag or 'href="http' in tag or 'src="//' in tag]
    upload = {"files": ("a.wav", b"x")}
    url = f"http://{address}/gradio_api/upload"
    assert httpx.post(url, files=upload, headers=headers, timeout=60).status_code == status


def test_missing_extra_and_folder_are_reported_before_any_work(monkeypatch):
    result = CliRunner().invoke(main, ["demo", "no such folder", "--model", "no such model"])
    assert result.exit_code == 1 and "no such folder does not exist" in result.output
    monkeypatch.setattr(m2d_hub.io, "_is_installed", lambda name: name != "gradio")
    result = CliRunner().invoke(main, ["demo", "--model", "no such model"])
    assert result.exit_code == 1 and "pip install 'm2d-hub[demo]'" in result.output


@pytest.mark.slow
def test_command_serves_until_it_is_stopped_and_leaves_no_uploads(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "m2d_hub", "demo", "--device", "cpu", "--port", port]
    environment = {"TMPDIR": str(tmp_path), "PATH": "", "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        url = process.stdout.readline().split()[1]
        upload = {"files": ("a.wav", b"x")}
        client = httpx.Client(transport=httpx.HTTPTransport(retries=9), timeout=60)
        assert client.post(f"{url}gradio_api/upload", files=upload).status_code == 200
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM and not list(tmp_path.glob("m2d-hub-demo*"))
