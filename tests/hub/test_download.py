"""Downloads: resumed, retried, hashed; complete, or not there at all."""

import contextlib
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

import m2d_hub.pretrained.download
from m2d_hub.errors import DownloadError
from m2d_hub.io import CHUNK_BYTES, locked
from m2d_hub.pretrained.cache import release_url
from m2d_hub.pretrained.download import download
from m2d_hub.pretrained.registry import find_model

from ..nobody import as_nobody
from .release_server import Fault, ReleaseServer

CONTENT = random.Random(0).randbytes(300_000)
SLEEP = time.sleep  # the real one, where tests replace it
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with ReleaseServer() as running:
        running.files["/v1/model.zip"] = CONTENT
        yield running


@pytest.fixture
def waits(monkeypatch):
    """Seconds that retries would have waited."""
    waited = []
    monkeypatch.setattr(m2d_hub.pretrained.download.time, "sleep", waited.append)
    return waited


def fetch(server, folder):
    return download(f"{server.url}/v1/model.zip", folder / "model.zip")


def test_file_arrives_whole_with_its_hash_and_nothing_beside_it(server, tmp_path):
    result = fetch(server, tmp_path / "new" / "folder")
    assert (result.path.read_bytes(), result.sha256, result.size) == (CONTENT, DIGEST, len(CONTENT))
    assert os.listdir(result.path.parent) == ["model.zip"]


def test_dropped_connection_is_resumed_where_it_ended(server, tmp_path, waits):
    server.faults["/v1/model.zip"] = [Fault(cut_after=100_000), Fault(cut_after=50_000)]
    assert fetch(server, tmp_path).sha256 == DIGEST
    asked = [headers.get("Range") for _, _, headers in server.requests]
    assert asked == [None, "bytes=100000-", "bytes=150000-"]
    assert waits == [1.0, 1.0]  # each attempt brought something new


def test_interrupted_download_goes_on_in_the_next_call(server, tmp_path, monkeypatch):
    server.faults["/v1/model.zip"] = [Fault(cut_after=100_000)]
    with monkeypatch.context() as patch:
        patch.setattr(
            m2d_hub.pretrained.download.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            fetch(server, tmp_path)
    assert not (tmp_path / "model.zip").exists()
    assert (tmp_path / "model.zip.partial").stat().st_size == 100_000
    assert fetch(server, tmp_path).sha256 == DIGEST
    assert server.requests[-1][2]["Range"] == "bytes=100000-"
    assert os.listdir(tmp_path) == ["model.zip"]


def test_killed_process_leaves_a_part_that_the_next_one_continues(server, tmp_path):
    server.faults["/v1/model.zip"] = [Fault(stall_after=2 * CHUNK_BYTES)]
    server.files["/v1/model.zip"] = content = random.Random(1).randbytes(3 * CHUNK_BYTES)
    script = (
        "import pathlib, sys; from m2d_hub.pretrained.download import download; "
        "download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    arguments = [f"{server.url}/v1/model.zip", str(tmp_path / "model.zip")]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.DEVNULL)
    partial, deadline = tmp_path / "model.zip.partial", time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    arrived = partial.stat().st_size
    assert fetch(server, tmp_path).path.read_bytes() == content
    assert server.requests[-1][2]["Range"] == f"bytes={arrived}-"
    assert os.listdir(tmp_path) == ["model.zip"]


def test_part_of_a_replaced_file_is_not_mixed_with_the_new_one(server, tmp_path, waits):
    server.faults["/v1/model.zip"] = [Fault(cut_after=100_000), Fault(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    server.files["/v1/model.zip"] = CONTENT[::-1]
    assert fetch(server, tmp_path).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lacking", ["ranges", "validators"])
def test_server_that_cannot_resume_is_asked_for_the_whole_again(server, tmp_path, waits, lacking):
    setattr(server, lacking, False)
    server.faults["/v1/model.zip"] = [Fault(cut_after=100_000)]
    assert fetch(server, tmp_path).sha256 == DIGEST


def test_complete_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "model.zip.partial").write_bytes(CONTENT)
    (tmp_path / "model.zip.partial.etag").write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    assert fetch(server, tmp_path).sha256 == DIGEST
    assert len(server.requests) == 1


def test_part_longer_than_the_file_is_dropped(server, tmp_path, waits):
    (tmp_path / "model.zip.partial").write_bytes(CONTENT + b"more")
    (tmp_path / "model.zip.partial.etag").write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    assert fetch(server, tmp_path).sha256 == DIGEST


def test_server_errors_are_retried_with_growing_pauses(server, tmp_path, waits):
    server.faults["/v1/model.zip"] = [
        Fault(status=503),
        Fault(status=500),
        Fault(status=429, headers={"Retry-After": "7"}),
    ]
    assert fetch(server, tmp_path).sha256 == DIGEST
    assert waits == [1.0, 2.0, 7.0]


def test_lasting_server_error_says_how_to_go_on_offline(server, tmp_path, waits):
    server.faults["/v1/model.zip"] = [Fault(status=503)] * 5
    with pytest.raises(DownloadError) as error:
        fetch(server, tmp_path)
    url = f"{server.url}/v1/model.zip"
    assert str(error.value) == (
        f"{url} could not be downloaded: the server answered 503 Service Unavailable, 5 times in a row. "
        f"To go on offline, fetch {url} on another machine and put it at {tmp_path / 'model.zip'}."
    )
    assert os.listdir(tmp_path) == []


def test_connection_that_brings_nothing_new_is_given_up_and_its_part_is_kept(server, tmp_path, waits):
    server.ranges = False
    server.faults["/v1/model.zip"] = [Fault(cut_after=200_000)] * 9
    with pytest.raises(DownloadError) as error:
        fetch(server, tmp_path)
    assert "the connection ended after 200000 of 300000 bytes, 5 times in a row." in str(error.value)
    assert "0.2 MB are kept; the next call goes on from there." in str(error.value)
    assert not (tmp_path / "model.zip").exists()


def test_missing_file_is_not_asked_for_again(server, tmp_path, waits):
    with pytest.raises(
        DownloadError, match=r"v2/model\.zip could not be downloaded: the server answered 404 Not Found\."
    ):
        download(f"{server.url}/v2/model.zip", tmp_path / "model.zip")
    assert (len(server.requests), waits) == (1, [])


def test_unreachable_host_says_so(tmp_path, waits):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/model.zip"
        with pytest.raises(DownloadError, match=r"Connection refused, 5 times in a row\. To go on offline"):
            download(url, tmp_path / "model.zip")


def test_silent_server_is_given_up(tmp_path, waits, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.download, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.zip"
        with pytest.raises(DownloadError, match="timed out, 5 times in a row"):
            download(url, tmp_path / "model.zip")


def test_disk_too_small_is_refused_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(m2d_hub.pretrained.download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError) as error:
        fetch(server, tmp_path)
    assert str(error.value) == (
        f"The disk of {tmp_path} is full ([Errno 28] 0.3 MB are needed, 0.1 MB are free). "
        "Free some space, or name another folder: load_model(..., cache_dir=FOLDER) or the environment "
        "variable HF_HOME."
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_that_fills_up_leaves_nothing(server, tmp_path):
    (tmp_path / "model.zip.partial").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=rf"The disk of {tmp_path} is full \(.*No space left on device"):
        fetch(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=rf"{tmp_path}/file/cache cannot be written \(.*cache_dir=FOLDER"):
        fetch(server, tmp_path / "file" / "cache")
    assert server.requests == []


def test_folder_without_permission_is_named(server, tmp_path):
    tmp_path.chmod(0o555)
    with (
        as_nobody(tmp_path),
        pytest.raises(DownloadError, match=rf"{tmp_path} cannot be written \(.*Permission denied"),
    ):
        fetch(server, tmp_path)
    assert os.listdir(tmp_path) == []


def answering(answers):
    """Address of a server that gives ready answers, one a connection, the last one ever after."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        pending = list(answers)
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                for part in pending.pop(0) if len(pending) > 1 else pending[0]:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=serve, daemon=True).start()
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}/model.zip"


def head(status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("length", ["abc", "1e3", "", "-5", "²", "9" * 5_000])
def test_a_length_that_is_no_number_is_passed_over(tmp_path, waits, length):
    listening, url = answering([[head(Content_Length=length), CONTENT]])
    with listening:
        assert download(url, tmp_path / "model.zip").sha256 == DIGEST


@pytest.mark.parametrize("wait", ["soon", "²", "1e9", "-1", "9" * 5_000, "Wed, 21 Oct 2037 07:28:00 GMT"])
def test_a_pause_that_is_no_number_is_passed_over(tmp_path, waits, wait):
    answers = [[head("503 Busy", Retry_After=wait)], [head(Content_Length=len(CONTENT)), CONTENT]]
    listening, url = answering(answers)
    with listening:
        assert download(url, tmp_path / "model.zip").sha256 == DIGEST
    assert waits == [1.0]


def test_a_long_pause_is_cut(tmp_path, waits):
    answers = [[head("503 Busy", Retry_After=10**8)], [head(Content_Length=len(CONTENT)), CONTENT]]
    listening, url = answering(answers)
    with listening:
        download(url, tmp_path / "model.zip")
    assert waits == [60.0]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "model.zip",
            "//host/model.zip",
            "ftp://host/x",
            "file:///etc/passwd",
            "http://",
            "http://[::1",
        ),
        *("http://h:x/", "http://host:99999/x", "https://höst/x", "https://host/a b", "https://host/\n"),
        "mirror.example/m2d",
    ],
)
def test_an_address_that_is_none_is_told_before_connecting(tmp_path, url, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.download, "_attempt", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(DownloadError, match="it must look like https://host/path"):
        download(url, tmp_path / "model.zip")
    if url:
        monkeypatch.setenv("M2D_HUB_MIRROR", url)
        with pytest.raises(DownloadError, match=r"^M2D_HUB_MIRROR .*it must look like"):
            release_url(find_model("m2d-0.7"))


@pytest.mark.parametrize(
    "place", ["http://[::1", "http://host:port/", "//", "http://h\xe4/", "ftp://host/x", ""]
)
def test_a_redirect_to_no_address_is_an_error_of_the_download(tmp_path, waits, place):
    listening, url = answering([[head("302 Found", Location=place, Content_Length=0)]])
    with listening, pytest.raises(DownloadError, match="could not be downloaded"):
        download(url, tmp_path / "model.zip")


@pytest.mark.parametrize("told", ["bytes 5-9/300000", "bytes 0-9/10", "bytes */9", "lines 1-2/3", ""])
def test_another_part_than_was_asked_for_is_never_kept(tmp_path, waits, told):
    (tmp_path / "model.zip.partial").write_bytes(CONTENT[:100_000])
    (tmp_path / "model.zip.partial.etag").write_text('"same"')
    part = [head("206 Partial Content", Content_Range=told, ETag='"same"', Content_Length=10), CONTENT[:10]]
    listening, url = answering([part, [head(Content_Length=len(CONTENT)), CONTENT]])
    with listening:
        assert download(url, tmp_path / "model.zip").sha256 == DIGEST


def test_a_part_that_nobody_asked_for_is_not_the_file(tmp_path, waits):
    part = [head("206 Partial Content", Content_Range="bytes 5-9/300000", Content_Length=5), CONTENT[5:10]]
    listening, url = answering([part])
    with listening, pytest.raises(DownloadError, match="another part of the file"):
        download(url, tmp_path / "model.zip")
    assert os.listdir(tmp_path) == []


def test_endless_data_is_given_up(tmp_path, waits, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.download, "MAX_BYTES", 1 << 20)
    listening, url = answering([[head(), *[bytes(1 << 16)] * 100_000]])
    with listening, pytest.raises(DownloadError, match="more came than the 1,048,576 bytes"):
        download(url, tmp_path / "model.zip")
    assert os.listdir(tmp_path) == []


def test_a_connection_that_trickles_is_given_up(tmp_path, waits, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.download, "PACE_S", 0.2)
    listening, url = answering([Trickle(head(Content_Length=len(CONTENT)), CONTENT)])
    with listening, pytest.raises(DownloadError, match=r"bytes a second are too slow, 5 times in a row"):
        download(url, tmp_path / "model.zip")


def test_headers_that_trickle_are_given_up(tmp_path, waits, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.download, "ANSWER_S", 0.2)
    listening, url = answering([Trickle(b"", head(X="x" * 5_000))])
    with listening, pytest.raises(DownloadError, match=r"no whole answer within 0 s, 5 times in a row"):
        download(url, tmp_path / "model.zip")


class Trickle:
    """Something at once, and the rest byte by byte."""

    def __init__(self, at_once, slowly):
        self.at_once, self.slowly = at_once, slowly

    def __iter__(self):
        yield self.at_once
        for byte in self.slowly:
            SLEEP(0.02)
            yield bytes([byte])


def test_a_mark_that_is_no_text_is_passed_over(server, tmp_path):
    (tmp_path / "model.zip.partial").write_bytes(CONTENT[:9])
    (tmp_path / "model.zip.partial.etag").write_bytes(b"\xff\nInjected: yes")
    assert fetch(server, tmp_path).sha256 == DIGEST
    assert "Injected" not in server.requests[-1][2]


def test_progress_bar_obeys_the_hubs_switch(server, tmp_path, capsys, monkeypatch):
    import huggingface_hub.utils

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    huggingface_hub.utils.enable_progress_bars()
    fetch(server, tmp_path)
    assert "model.zip: 100%" in capsys.readouterr().err
    huggingface_hub.utils.disable_progress_bars()
    try:
        fetch(server, tmp_path / "quiet")
    finally:
        huggingface_hub.utils.enable_progress_bars()
    assert capsys.readouterr().err == ""


def test_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    lock = tmp_path / "model.lock"
    hold = f"import filelock; filelock.FileLock({str(lock)!r}).acquire(); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.communicate()
    started = time.monotonic()
    with locked(lock):
        assert time.monotonic() - started < 5
