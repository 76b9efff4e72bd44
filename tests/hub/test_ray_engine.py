"""Files embedded by the workers of a Ray cluster on this machine: the same output as without Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import soundfile
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli import main as cli

from ..signals import noise

pytest.importorskip("ray", reason="needs m2d-hub[ray]")
pytestmark = [pytest.mark.multi_process, pytest.mark.slow]

RAY_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # no token in the home folder
DRIVER = """
import contextlib, os, signal, sys
import psutil, ray
import m2d_hub
from m2d_hub.corpus.ray_engine import RayEngine

folder, out, killed = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)

def is_worker(process):
    with contextlib.suppress(psutil.Error):  # it has ended
        return "_Worker" in "".join(process.cmdline())

def engine(batches, job):
    for number, result in enumerate(RayEngine(2)(batches, job)):
        if number == 0 and killed == "worker":
            next(filter(is_worker, psutil.Process().children(recursive=True))).kill()
        if number == 0 and killed == "driver":
            os.kill(os.getpid(), signal.SIGKILL)
        yield result

m2d_hub.embed_files(folder, out, model="m2d-mini", batch_size=2, device="cpu", engine=engine)
"""


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processors, as small as Ray makes them."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
        yield
        ray.shutdown()


def test_ray_writes_what_the_local_engine_writes_and_goes_on(cluster, tiny, clips, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    (tmp_path / "broken.wav").write_text("no audio")
    paths = [*sorted(clips.glob("*.wav")), tmp_path / "broken.wav"]

    def embed(files, out, *options, status=3):
        settings = ["--model", tmp_path / "tiny", "--batch-size", 2, "--device", "cpu", "--json"]
        arguments = ["embed", *files, "--out", tmp_path / out, *settings, *options]
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        answer = json.loads(result.stdout.splitlines()[-1])
        return answer["embedded"], answer["already_there"], answer["failed"]

    local = embed(paths, "local.npz")
    assert local == (len(paths) - 1, 0, 1)
    embed(paths[:1], "ray.npz", status=0)
    assert embed(paths, "ray.npz", "--engine", "ray", "--workers", 2) == (len(paths) - 2, 1, 1)
    with np.load(tmp_path / "local.npz") as expected, np.load(tmp_path / "ray.npz") as found:
        assert found["file"].tolist() == expected["file"].tolist()
        np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=1e-5)
    errors = [(tmp_path / f"{name}.npz.errors.csv").read_text() for name in ("local", "ray")]
    assert errors[0] == errors[1]


def test_workers_write_their_own_parts(cluster, tiny, clips, tmp_path, monkeypatch):
    """What comes back holds no embedding; the rows are those of the local engine, though fewer were left."""
    from m2d_hub.corpus.outputs import DatasetOutput
    from m2d_hub.corpus.ray_engine import RayEngine

    tiny.save_pretrained(tmp_path / "tiny")
    (tmp_path / "broken.wav").write_text("no audio")
    paths = [*sorted(clips.glob("*.wav")), tmp_path / "broken.wav"]
    settings = {"model": tmp_path / "tiny", "batch_size": 2, "device": "cpu"}
    m2d_hub.embed_files(paths, tmp_path / "local.npz", **settings)
    m2d_hub.embed_files(paths[:1], tmp_path / "out.dataset", **settings)
    monkeypatch.setattr(DatasetOutput, "add", lambda *_: pytest.fail("records came back"))
    monkeypatch.chdir(tmp_path)
    summary = m2d_hub.embed_files(paths, "out.dataset", engine=RayEngine(2), **settings)
    assert (summary.embedded, summary.already_there, summary.failed) == (len(paths) - 2, 1, 1)
    table = pyarrow.parquet.read_table(tmp_path / "out.dataset").to_pydict()
    found = dict(zip(table["file"], table["embedding"], strict=True))
    with np.load(tmp_path / "local.npz") as expected:
        assert sorted(table["file"]) == sorted(expected["file"].tolist())
        for file, embedding in zip(expected["file"].tolist(), expected["embedding"], strict=True):
            np.testing.assert_allclose(found[file], embedding, atol=1e-5)


def test_a_wrong_model_is_told_before_a_worker_starts(tmp_path, clips):
    from m2d_hub.corpus.ray_engine import RayEngine

    with pytest.raises(m2d_hub.M2DError, match="nowhere"):
        m2d_hub.embed_files(clips, tmp_path / "out.npz", model=tmp_path / "nowhere", engine=RayEngine())
    assert not list(tmp_path.iterdir())


def test_an_actor_embeds_rows_of_a_data_set(cluster, tiny, clips, tmp_path):
    import ray

    from m2d_hub.clients.ray import EmbedAudio

    tiny.save_pretrained(tmp_path)
    paths = [str(path) for path in sorted(clips.glob("*.flac"))]
    rows = ray.data.from_items([{"path": path} for path in paths])
    mapped = rows.map_batches(
        EmbedAudio, fn_constructor_kwargs={"name": str(tmp_path), "device": "cpu"}, concurrency=1
    )
    found = {row["path"]: row["embedding"] for row in mapped.take_all()}
    for path in paths:
        np.testing.assert_allclose(found[path], tiny.encode_clip(path)[0].numpy(), atol=1e-5)


def test_nothing_is_lost_nor_twice_where_the_driver_and_then_a_worker_is_killed(tmp_path):
    (tmp_path / "originals").mkdir()
    (tmp_path / "links").mkdir()
    originals = [tmp_path / "originals" / f"{seconds}.wav" for seconds in (14, 17, 20)]
    for path in originals:
        soundfile.write(path, noise(int(path.stem) * 16_000).numpy(), 16_000)
    for number in range(120):
        (tmp_path / "links" / f"{number:03}.wav").symlink_to(originals[number % 3])
    out = tmp_path / "out.dataset"

    def drive(killed):
        command = [sys.executable, "-c", DRIVER, tmp_path / "links", out, killed]
        child = psutil.Popen(list(map(str, command)), env={**os.environ, **RAY_ENVIRONMENT})
        return child.wait(timeout=180)

    assert drive("driver") == -signal.SIGKILL
    kept = pyarrow.parquet.read_table(out).num_rows
    assert 0 < kept < 120
    assert drive("worker") == 0
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert Counter(table["file"]) == Counter(str(path) for path in (tmp_path / "links").iterdir())
    expected = m2d_hub.load_model("m2d-mini", device="cpu").encode_clip(originals).numpy()
    for file, embedding in zip(table["file"], table["embedding"], strict=True):
        np.testing.assert_allclose(embedding, expected[int(file[-7:-4]) % 3], atol=1e-5)
