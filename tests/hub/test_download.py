"""Downloads of releases: resumed, complete, and stored in one place by one process at a time."""

import os
import random
import subprocess
import sys
import textwrap

import huggingface_hub
import pytest

from m2d_hub.errors import DownloadError
from m2d_hub.pretrained.registry import find_model
from m2d_hub.pretrained.release import _download, fetch, release_url

from ..nobody import as_nobody
from .release_server import Fault, encoder_tensors, release_zip, tiny_info

CONTENT = random.Random(0).randbytes(300_000)
PATH = "/v1/model.zip"
TINY = tiny_info()


@pytest.fixture
def server(release_host, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    release_host.files[PATH] = CONTENT
    return release_host


def download(server, folder):
    _download(server.url + PATH, folder / "model.zip")
    return (folder / "model.zip").read_bytes()


def ranges(server):
    return [headers.get("range") for _, _, headers in server.requests]


def test_url_is_the_authors_release_unless_a_mirror_is_named(monkeypatch):
    path = "v0.1.0/m2d_vit_base-80x608p16x16-221006-mr7.zip"
    monkeypatch.setenv("M2D_HUB_MIRROR", "https://mirror.example/m2d/")
    assert release_url(find_model("m2d-0.7")) == f"https://mirror.example/m2d/{path}"
    monkeypatch.delenv("M2D_HUB_MIRROR")
    assert release_url(find_model("m2d-0.7")) == f"https://github.com/nttcslab/m2d/releases/download/{path}"


def test_a_dropped_connection_is_resumed_where_it_ended(server, tmp_path):
    server.faults[PATH] = [Fault(cut_after=100_000), Fault(cut_after=50_000)]
    assert download(server, tmp_path / "new") == CONTENT
    assert os.listdir(tmp_path / "new") == ["model.zip"]
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_process_resumes_an_interrupted_download(server, tmp_path):
    server.faults[PATH] = [Fault(cut_after=100_000), Fault(status=403)]
    with pytest.raises(DownloadError) as error:
        download(server, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{server.url}{PATH} could not be downloaded (") and "403" in message
    assert f"Try again to resume, or delete {tmp_path}/model.zip.partial to start over." in message
    assert message.endswith(f"on another machine and put it at {tmp_path}/model.zip.")
    assert download(server, tmp_path) == CONTENT
    assert ranges(server)[-1] == "bytes=100000-"


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    server.ranges = False
    server.faults[PATH] = [Fault(cut_after=100_000)]
    assert download(server, tmp_path) == CONTENT


def test_a_download_that_is_too_large_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr("m2d_hub.pretrained.release.MAX_DOWNLOAD_BYTES", 200_000)
    with pytest.raises(DownloadError, match="the server sent more than 200,000 bytes; check the URL"):
        download(server, tmp_path)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


@pytest.mark.parametrize("url", ["model.zip", "file:///etc/passwd"])
def test_a_wrong_address_is_an_error_of_the_download(tmp_path, url):
    with pytest.raises(DownloadError, match="could not be downloaded"):
        _download(url, tmp_path / "model.zip")


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=rf"{tmp_path}/file/cache cannot be written \(.*cache_dir=FOLDER"):
        download(server, tmp_path / "file" / "cache")
    tmp_path.chmod(0o555)
    with as_nobody(tmp_path), pytest.raises(DownloadError, match=r"cannot be written .*Permission denied"):
        download(server, tmp_path)
    assert server.requests == []


def test_several_processes_download_once(release_host, tmp_path):
    release_host.files[f"/{TINY.url_path}"] = release_zip(TINY, encoder_tensors())
    script = f"""
        import os, pathlib, sys
        import huggingface_hub.file_download
        from m2d_hub.pretrained.registry import ModelInfo
        from m2d_hub.pretrained.release import fetch
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    fetch({TINY!r}, pathlib.Path({str(tmp_path)!r}), offline=False)
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)
    assert release_host.count(f"/{TINY.url_path}") == 1
    assert fetch(TINY, tmp_path, offline=True) == tmp_path / "tiny"
