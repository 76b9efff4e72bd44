"""Object stores by URL, against a local S3 server."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import socket
import sys
import tarfile
import tempfile
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2d_hub import AudioError, ConfigError, embed_files, find_sources
from m2d_hub.audio.stored import FetchedFile
from m2d_hub.cli import main as cli
from m2d_hub.corpus import stores
from m2d_hub.corpus.outputs import Output
from m2d_hub.corpus.stored import read_embeddings
from m2d_hub.corpus.stores import to_location

from ..signals import noise

server = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors")


def wav(seed, samples=4_000):
    file = io.BytesIO()
    soundfile.write(file, noise(samples + seed).numpy(), 16_000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def credentials(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(endpoint, credentials, monkeypatch):
    """A new bucket, through boto3: names and bytes can be put and got."""
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    stores._file_system.cache_clear()
    return Bucket(boto3.client("s3", endpoint_url=endpoint))


class Bucket:
    count = 0

    def __init__(self, client):
        Bucket.count += 1
        self.name, self.client = f"bucket-{Bucket.count}", client
        client.create_bucket(Bucket=self.name)
        self.url = f"s3://{self.name}"

    def put(self, name, content):
        self.client.put_object(Bucket=self.name, Key=name, Body=content)

    def get(self, name):
        return self.client.get_object(Bucket=self.name, Key=name)["Body"].read()

    def names(self):
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(each["Key"] for each in found)

    def download(self, folder):
        for name in self.names():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.get(name))
        return folder


@pytest.fixture
def recordings(bucket, tmp_path):
    """Six objects below ``in/``, and the same files in a folder."""
    (tmp_path / "in").mkdir()
    for seed in range(6):
        bucket.put(f"in/a b/{seed}#.wav", wav(seed))
        (tmp_path / "in" / f"{seed}.wav").write_bytes(wav(seed))
    bucket.put("in/notes.txt", b"no audio")
    return f"{bucket.url}/in"


@pytest.fixture
def embed(tiny_folder):
    def run(paths, out, **options):
        return embed_files(paths, out, model=tiny_folder, batch_size=2, device="cpu", **options)

    return run


def by_seed(path):
    """Embeddings by the number that a file's name begins with."""
    return {int(row.file.rsplit("/", 1)[1][0]): row.embedding for row in read_embeddings(path).rows()}


@pytest.mark.parametrize(("kind", "out"), [("clip", "out.parquet"), ("frames", "out.dataset")])
def test_objects_are_embedded_into_their_store(out, kind, bucket, recordings, embed, tmp_path):
    summary = embed(recordings, f"{bucket.url}/{out}", kind=kind)
    assert (summary.embedded, summary.failed, summary.out) == (6, 0, f"{bucket.url}/{out}")
    embed(tmp_path / "in", tmp_path / "local.npz", kind=kind)
    expected, found = by_seed(tmp_path / "local.npz"), by_seed(f"{bucket.url}/{out}")
    bucket.download(tmp_path / "down")
    assert len(by_seed(tmp_path / "down" / out)) == 6
    assert sorted(found) == sorted(expected) == list(range(6))
    for seed, embedding in expected.items():
        np.testing.assert_array_equal(found[seed], embedding)
    written = {name.split("/")[0] for name in bucket.names()}
    assert written == {"in", out}, "parts are left"


@pytest.mark.parametrize("out", ["out.parquet", "out.dataset"])
def test_a_job_in_a_store_resumes(out, bucket, recordings, embed, monkeypatch):
    """Stopped after two of three batches; then with more files; then with nothing to do."""

    add, calls = Output.add, iter(range(3))

    def interrupted(self, rows):
        if next(calls) == 2:
            raise KeyboardInterrupt
        add(self, rows)

    url = f"{bucket.url}/deep/{out}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Output, "add", interrupted)
        embed(recordings, url)
    resumed = embed(recordings, url)
    assert (resumed.already_there, resumed.embedded) == (4, 2)
    bucket.put("in/6.wav", wav(6))
    bucket.put("in/a b/0#.wav", wav(50))
    assert embed(recordings, url).embedded == 2
    last = embed(recordings, url)
    assert (last.already_there, last.embedded) == (7, 0)
    found = [row.file for row in read_embeddings(url).rows()]
    assert len(found) == len(set(found)) == 7


def test_files_that_cannot_be_read_are_listed_in_the_store(bucket, recordings, tiny_folder):
    bucket.put("in/bad.wav", b"no audio")
    bucket.put("in/empty.wav", b"")
    given = [recordings, f"{bucket.url}/in/missing.wav", "--out", f"{bucket.url}/out.parquet"]
    result = CliRunner().invoke(cli.main, ["embed", *given, "--model", str(tiny_folder), "--device", "cpu"])
    assert result.exit_code == 3, result.output
    assert f"see {bucket.url}/out.parquet.errors.csv" in result.output
    reasons = {row["file"]: row["error"] for row in rows(bucket.get("out.parquet.errors.csv"))}
    assert list(reasons) == [f"{bucket.url}/in/{name}.wav" for name in ("bad", "empty", "missing")]
    assert "cannot be read as audio" in reasons[f"{recordings}/bad.wav"]
    assert reasons[f"{recordings}/empty.wav"] == f"{recordings}/empty.wav is empty: it holds no samples."
    assert reasons[f"{recordings}/missing.wav"] == f"{recordings}/missing.wav does not exist."
    for name in ("bad", "empty", "missing"):
        bucket.put(f"in/{name}.wav", wav(7))
    assert CliRunner().invoke(cli.main, ["embed", *given, "--model", str(tiny_folder)]).exit_code == 0
    assert "out.parquet.errors.csv" not in bucket.names()


def rows(content):
    return list(csv.DictReader(io.StringIO(content.decode())))


@pytest.mark.parametrize("where", ["store", "disk"])
def test_a_list_names_objects(where, bucket, recordings, embed, tmp_path):
    (tmp_path / "here.wav").write_bytes(wav(9))
    names = ["a b/0#.wav", f"{recordings}/a b/1#.wav"]
    if where == "store":
        bucket.put("in/list.csv", "\n".join(["file", *names]).encode())
        paths = f"{recordings}/list.csv"
    else:
        paths = tmp_path / "list.csv"
        paths.write_text(f"file\nhere.wav\n{names[1]}\n")
    summary = embed(paths, tmp_path / "out.npz")
    assert (summary.embedded, summary.failed) == (2, 0)
    expected = names if where == "store" else ["here.wav", names[1]]
    assert [source.file for source in find_sources(paths)] == expected


def test_shards_in_a_store_are_read(bucket, embed, tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        info = tarfile.TarInfo("0.wav")
        info.size = len(wav(0))
        tar.addfile(info, io.BytesIO(wav(0)))
    bucket.put("shards/000.tar", content.getvalue())
    (tmp_path / "0.wav").write_bytes(wav(0))
    embed([f"{bucket.url}/shards", tmp_path / "0.wav"], tmp_path / "out.npz")
    np.testing.assert_array_equal(*[row.embedding for row in read_embeddings(tmp_path / "out.npz").rows()])


def test_what_something_else_wrote_into_a_store_is_refused_and_kept(bucket, recordings, embed):
    bucket.put("out.parquet", b"precious")
    bucket.put("out.dataset/notes.txt", b"precious")
    bucket.put("new.parquet.errors.csv", b"precious")
    bucket.put("old.parquet.parts/deep/notes.txt", b"precious")
    before = {name: bucket.get(name) for name in bucket.names()}
    for out in ("out.parquet", "out.dataset", "new.parquet", "old.parquet"):
        with pytest.raises(ConfigError, match=r"not (write|written)"):
            embed(recordings, f"{bucket.url}/{out}")
    assert {name: bucket.get(name) for name in bucket.names()} == before


def test_an_interrupted_upload_replaces_nothing(bucket, recordings, embed, monkeypatch):
    out = to_location(f"{bucket.url}/out.parquet")
    embed(f"{recordings}/a b/0#.wav", str(out))
    before = bucket.get("out.parquet")
    call = type(out.fs)._call_s3

    async def stalled(self, method, *arguments, **values):
        if method == "put_object" and values["Key"] == "out.parquet":
            raise OSError("the connection was closed")
        return await call(self, method, *arguments, **values)

    with monkeypatch.context() as patch:
        patch.setattr(type(out.fs), "_call_s3", stalled)
        with pytest.raises(ConfigError, match="cannot be"):
            embed(recordings, str(out))
    assert bucket.get("out.parquet") == before
    resumed = embed(recordings, str(out))
    assert (resumed.already_there, resumed.embedded) == (6, 0)


def test_a_full_disk_of_temporary_files_ends_the_job(recordings, embed, tmp_path, monkeypatch):
    copies = []

    def full(self, content):
        copies.append(self)
        if len(copies) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fill(self, content)

    fill = FetchedFile.fill
    monkeypatch.setattr(FetchedFile, "fill", full)
    with pytest.raises(OSError, match="No space left"):
        embed(recordings, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz.errors.csv").exists()


def test_temporary_copies_have_no_name_and_must_be_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copy = FetchedFile("s3://bucket/a.wav", 7, 0)
    copy.fill(io.BytesIO(b"7 bytes"))
    first, second = copy.open(), copy.open()
    assert first.read(2) == second.read(2) == b"7 " and first.read() == b"bytes"
    assert os.name == "nt" or not list(tmp_path.iterdir())
    with pytest.raises(AudioError, match=r"s3://bucket/a\.wav is incomplete: 7 of 100 bytes"):
        FetchedFile("s3://bucket/a.wav", 100, 0).fill(io.BytesIO(b"7 bytes"))


def test_missing_objects_of_a_list_are_reported_and_the_rest_embedded(bucket, embed, tmp_path):
    missing = ["s3://no-such-bucket-of-ours/a.wav", f"{bucket.url}/gone.wav"]
    missing += [f"{bucket.url}/0.wav?endpoint_override=localhost:1&scheme=http"]
    for name in ("0.wav", "a//b.wav", "1.wav?take=2"):
        bucket.put(name, wav(0))
    good = [f"{bucket.url}/0.wav", f"{bucket.url}/a//b.wav", f"{bucket.url}/1.wav?take=2"]
    (tmp_path / "list.csv").write_text("\n".join(["file", *missing, *good]))
    embed(tmp_path / "list.csv", tmp_path / "out.npz")
    assert [row.file for row in read_embeddings(tmp_path / "out.npz").rows()] == good
    assert [row["file"] for row in rows((tmp_path / "out.npz.errors.csv").read_bytes())] == missing


WRONG = {
    "ftp://host/a.wav": r"ftp:// is not supported; give a path, or a URL with s3://, gs://, abfs://",
    "s3://": r"s3:// has no bucket; give s3://BUCKET/PREFIX",
    "s3://no-such-bucket-of-ours/in.csv": r"in\.csv does not exist",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_url_that_cannot_be_used_is_refused(url, bucket):
    with pytest.raises(ConfigError, match=WRONG[url]):
        find_sources(url)


def test_outputs_and_inputs_that_a_store_cannot_have_are_refused(bucket, recordings, embed):
    with pytest.raises(ConfigError, match=r"in a store, the output must end in \.parquet or \.dataset"):
        embed(recordings, f"{bucket.url}/out.npz")
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket-of-ours/.* does not exist"):
        embed(recordings, "s3://no-such-bucket-of-ours/out.parquet")
    bucket.put("texts/notes.txt", b"")
    with pytest.raises(ConfigError, match=r"texts holds no audio files"):
        find_sources(f"{bucket.url}/texts/")


def test_a_store_that_cannot_be_reached_or_refuses_is_an_error(endpoint, bucket, monkeypatch):
    refused = r"cannot be used .* Check the network, the endpoint and the credentials .*AWS_ACCESS_KEY_ID"
    checked_after(endpoint, 0)
    try:
        with pytest.raises(ConfigError, match=refused):
            find_sources(f"{bucket.url}/in")
    finally:
        checked_after(endpoint, 1_000_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    stores._file_system.cache_clear()
    with pytest.raises(ConfigError, match=refused):
        find_sources("s3://unreached/in")


def test_a_store_that_never_answers_is_an_error(credentials, monkeypatch, tmp_path):
    pytest.importorskip("s3fs")
    monkeypatch.setattr(stores, "_TIMEOUT_S", 0.5)
    stores._file_system.cache_clear()
    (tmp_path / "a.wav").write_bytes(wav(0))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for use in (find_sources, lambda url: embed_files(tmp_path, f"{url}.parquet")):
            with pytest.raises(ConfigError, match=r"s3://b/.* cannot be used \(FSTimeoutError\)"):
                use("s3://b/in")
    stores._file_system.cache_clear()


def checked_after(endpoint, requests):
    """Make the server check credentials after so many requests."""
    url, kind = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urlopen(Request(url, data=str(requests).encode(), headers=kind, method="POST")).close()


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", r"s3fs.* pip install 'm2d-hub\[s3\]'"), ("gs", "gcsfs")]
)
def test_the_package_of_a_store_is_named_if_it_is_missing(scheme, package, monkeypatch):
    stores._file_system.cache_clear()
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    for module in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=package):
        find_sources(f"{scheme}://other/in")
