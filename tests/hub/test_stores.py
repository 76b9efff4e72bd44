"""Object stores by URL, against an S3 server on the loopback: read, written whole, gone on with, refused."""

from __future__ import annotations

import csv
import io
import logging
import sys
import tarfile
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2d_hub import ConfigError, embed_files, find_sources
from m2d_hub.cli import main as cli
from m2d_hub.corpus.stored import read_stored
from m2d_hub.corpus.stores import place_of

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
    """A new bucket, through pyarrow itself: names and bytes can be put and got."""
    from pyarrow import fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return Bucket(fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True))


class Bucket:
    count = 0

    def __init__(self, system):
        Bucket.count += 1
        self.name, self.system = f"bucket-{Bucket.count}", system
        system.create_dir(self.name)
        self.url = f"s3://{self.name}"

    def put(self, name, content):
        with self.system.open_output_stream(f"{self.name}/{name}") as file:
            file.write(content)

    def get(self, name):
        with self.system.open_input_stream(f"{self.name}/{name}") as file:
            return file.read()

    def names(self):
        from pyarrow import fs

        found = self.system.get_file_info(fs.FileSelector(self.name, recursive=True))
        return sorted(info.path.split("/", 1)[1] for info in found if info.is_file)

    def download(self, folder):
        for name in self.names():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.get(name))
        return folder


@pytest.fixture
def recordings(bucket, tmp_path):
    """Six of them below ``in/``, and the same in a folder of the disk."""
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
    return {int(record.file.rsplit("/", 1)[1][0]): record.embedding for record in read_stored(path).records()}


@pytest.mark.parametrize("kind", ["clip", "frames"])
@pytest.mark.parametrize("out", ["out.parquet", "out.dataset"])
def test_what_a_store_holds_is_embedded_into_it(out, kind, bucket, recordings, embed, tmp_path):
    summary = embed(recordings, f"{bucket.url}/{out}", kind=kind)
    assert (summary.embedded, summary.failed, summary.out) == (6, 0, f"{bucket.url}/{out}")
    embed(tmp_path / "in", tmp_path / "local.npz", kind=kind)
    expected, found = by_seed(tmp_path / "local.npz"), by_seed(bucket.download(tmp_path / "down") / out)
    assert sorted(found) == sorted(expected) == list(range(6))
    for seed, embedding in expected.items():
        np.testing.assert_array_equal(found[seed], embedding)
    written = {name.split("/")[0] for name in bucket.names()}
    assert written == {"in", out}, "parts are left"


@pytest.mark.parametrize("out", ["out.parquet", "out.dataset"])
def test_a_job_in_a_store_goes_on(out, bucket, recordings, embed, tmp_path):
    """Stopped after two of three batches; then with more files; then with nothing to do."""
    from m2d_hub.corpus.embed_files import _run_here

    def interrupt(batches, job):
        for number, result in enumerate(_run_here(batches, job)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    url = f"{bucket.url}/deep/{out}"
    with pytest.raises(KeyboardInterrupt):
        embed(recordings, url, engine=interrupt)
    resumed = embed(recordings, url)
    assert (resumed.already_there, resumed.embedded) == (4, 2)
    bucket.put("in/6.wav", wav(6))
    assert embed(recordings, url).embedded == 1
    last = embed(recordings, url)
    assert (last.already_there, last.embedded) == (7, 0)
    found = [
        record.file for record in read_stored(bucket.download(tmp_path / "down") / "deep" / out).records()
    ]
    assert len(found) == len(set(found)) == 7


def test_files_that_cannot_be_read_are_listed_in_the_store(bucket, recordings, tiny_folder):
    bucket.put("in/bad.wav", b"no audio")
    bucket.put("in/empty.wav", b"")
    given = [recordings, f"{bucket.url}/in/missing.wav", "--out", f"{bucket.url}/out.parquet"]
    result = CliRunner().invoke(cli.main, ["embed", *given, "--model", str(tiny_folder), "--device", "cpu"])
    assert result.exit_code == 3, result.output
    assert f"see {bucket.url}/out.parquet.errors.csv" in result.output
    told = {row["file"]: row["error"] for row in rows(bucket.get("out.parquet.errors.csv"))}
    assert list(told) == [f"{bucket.url}/in/{name}.wav" for name in ("bad", "empty", "missing")]
    assert "cannot be read as audio" in told[f"{recordings}/bad.wav"]
    assert told[f"{recordings}/empty.wav"] == f"{recordings}/empty.wav is empty: it holds no samples."
    assert told[f"{recordings}/missing.wav"] == f"{recordings}/missing.wav does not exist."
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
        for seed in range(3):
            info = tarfile.TarInfo(f"{seed}.wav")
            info.size = len(wav(seed))
            tar.addfile(info, io.BytesIO(wav(seed)))
    bucket.put("shards/000.tar", content.getvalue())
    assert embed(f"{bucket.url}/shards", tmp_path / "out.npz").embedded == 3
    for seed in range(3):
        (tmp_path / f"{seed}.wav").write_bytes(wav(seed))
    embed(sorted(tmp_path.glob("*.wav")), tmp_path / "local.npz")
    found = [record.embedding for record in read_stored(tmp_path / "out.npz").records()]
    expected = [record.embedding for record in read_stored(tmp_path / "local.npz").records()]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.multi_process
def test_workers_of_a_cluster_read_and_write_a_store(bucket, recordings, embed, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs m2d-hub[ray]")
    from m2d_hub.corpus.ray_engine import RayEngine

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    try:
        for out in ("out.dataset", "out.parquet"):
            assert embed(recordings, f"{bucket.url}/{out}", engine=RayEngine(2)).embedded == 6
    finally:
        ray.shutdown()
    embed(tmp_path / "in", tmp_path / "local.npz")
    expected, down = by_seed(tmp_path / "local.npz"), bucket.download(tmp_path / "down")
    for out in ("out.dataset", "out.parquet"):
        found = by_seed(down / out)
        assert sorted(found) == sorted(expected)
        for seed, embedding in expected.items():
            np.testing.assert_allclose(found[seed], embedding, atol=1e-5)


def test_an_object_that_changed_is_told(bucket, recordings, embed):
    embed(recordings, f"{bucket.url}/out.parquet")
    bucket.put("in/a b/0#.wav", wav(50))
    with pytest.raises(ConfigError, match=r"0#\.wav changed since"):
        embed(recordings, f"{bucket.url}/out.parquet")


def test_what_others_wrote_into_a_store_is_left_alone(bucket, recordings, embed):
    bucket.put("out.parquet", b"precious")
    bucket.put("out.dataset/notes.txt", b"precious")
    bucket.put("new.parquet.errors.csv", b"precious")
    for out in ("out.parquet", "out.dataset", "new.parquet"):
        with pytest.raises(ConfigError, match=r"not (write|written)"):
            embed(recordings, f"{bucket.url}/{out}")
    assert bucket.get("out.parquet") == bucket.get("new.parquet.errors.csv") == b"precious"


WRONG = {
    "ftp://host/a.wav": r"URLs of the kind ftp:// are not read; give a path, or s3://, gs://, abfs://, file://",
    "https://host/a.wav": r"URLs of the kind https:// are not read",
    "s3://": r"s3:// names no bucket: give s3://BUCKET/PREFIX",
    "s3://no-such-bucket-of-ours/in": r"cannot be used: there is no such bucket",
    "s3://no-such-bucket-of-ours/in.csv": r"cannot be used: there is no such bucket",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_url_that_cannot_be_used_is_told_in_a_sentence(url, bucket, embed, tmp_path):
    with pytest.raises(ConfigError, match=WRONG[url]):
        find_sources(url)
    (tmp_path / "a.wav").write_bytes(wav(0))
    for out in (f"{url}/out.parquet", f"{url}/out.dataset"):
        with pytest.raises(ConfigError, match=WRONG[url].replace("s3:// names", "names")):
            embed(tmp_path / "a.wav", out)


def test_patterns_are_refused_and_empty_prefixes_told(bucket, recordings):
    with pytest.raises(ConfigError, match="patterns are not looked for in stores"):
        find_sources(f"{recordings}/*.wav")
    bucket.put("texts/notes.txt", b"")
    with pytest.raises(ConfigError, match=r"texts holds no audio files"):
        find_sources(f"{bucket.url}/texts/")


@pytest.mark.parametrize("out", ["out.npz", "out", "out.safetensors"])
def test_only_parquet_is_written_into_a_store(out, bucket, recordings, tiny_folder):
    arguments = ["embed", recordings, "--out", f"{bucket.url}/{out}", "--model", str(tiny_folder)]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "in a store .parquet and .dataset are written" in result.output


def test_a_store_that_cannot_be_reached_is_told(credentials, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ConfigError, match="s3://unreached/in cannot be reached: check the network"):
        find_sources("s3://unreached/in")


def test_credentials_that_a_store_refuses_are_told(endpoint, bucket):
    checked_after(endpoint, 0)
    try:
        with pytest.raises(ConfigError, match=r"refuses these credentials, or there are none\. Give some"):
            find_sources(f"{bucket.url}/in")
    finally:
        checked_after(endpoint, 1_000_000)


def checked_after(endpoint, requests):
    """Makes the server look at credentials after so many requests."""
    url, kind = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urlopen(Request(url, data=str(requests).encode(), headers=kind, method="POST")).close()


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"s3:// needs pyarrow: pip install 'm2d-hub\[s3\]'"):
        find_sources("s3://another-bucket/in")


def test_a_url_of_a_file_is_its_path(tmp_path):
    (tmp_path / "a b.wav").write_bytes(wav(0))
    [source] = find_sources(f"file://{tmp_path}/a%20b.wav")
    assert source.path == tmp_path / "a b.wav"
    assert place_of("s3://bucket/key/") == place_of("S3://bucket/key")
