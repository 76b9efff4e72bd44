"""Files embedded by the workers of a Ray cluster on this machine: the same rows as without Ray."""

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
import contextlib, os, signal, sys, threading, time
import psutil, ray
import m2d_hub
from m2d_hub.clients.ray import RayEngine

folder, out, killed = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)

def is_worker(process):
    with contextlib.suppress(psutil.Error):  # it has ended
        return "MapWorker" in "".join(process.cmdline())

def kill_after_the_first_part():
    before = len(os.listdir(out)) if os.path.isdir(out) else 0
    while not os.path.isdir(out) or len(os.listdir(out)) == before:
        time.sleep(0.01)
    if killed == "driver":
        os.kill(os.getpid(), signal.SIGKILL)
    next(filter(is_worker, psutil.Process().children(recursive=True))).kill()

threading.Thread(target=kill_after_the_first_part, daemon=True).start()
m2d_hub.embed_files(folder, out, model="m2d-mini", batch_size=2, device="cpu", engine=RayEngine(2))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two processors, as small as Ray makes them, whose workers have another current folder."""
    import ray

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "readme").touch()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 << 20,
            runtime_env={"working_dir": str(elsewhere)},
        )
        yield
        ray.shutdown()


@pytest.mark.parametrize("kind", ["clip", "frames"])
def test_workers_write_the_rows_of_one_process_and_resume(kind, cluster, tiny, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained(tmp_path / "tiny")
    (tmp_path / "broken.wav").write_text("no audio")
    paths = [*sorted(clips.glob("*.wav")), tmp_path / "broken.wav"]

    def embed(files, out, *options, status=3):
        settings = ["--model", "./tiny", "--batch-size", 2, "--device", "cpu", "--kind", kind, "--json"]
        arguments = ["embed", *files, "--out", out, *settings, *options]
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        answer = json.loads(result.stdout.splitlines()[-1])
        return answer["embedded"], answer["already_there"], answer["failed"]

    assert embed(paths, "local.parquet") == (len(paths) - 1, 0, 1)
    embed(paths[:1], "ray.dataset", status=0)
    assert embed(paths, "ray.dataset", "--engine", "ray") == (len(paths) - 2, 1, 1)
    assert embed(paths, "ray.dataset", "--engine", "ray") == (0, len(paths) - 1, 1)
    expected, found = (
        pyarrow.parquet.read_table(out).to_pydict() for out in ("local.parquet", "ray.dataset")
    )
    assert list(found) == list(expected) and sorted(found["file"]) == sorted(expected["file"])
    for file, embedding in zip(found["file"], found["embedding"], strict=True):
        own = expected["embedding"][expected["file"].index(file)]
        np.testing.assert_allclose(np.array(embedding), np.array(own), atol=1e-5)
    errors = [(tmp_path / f"{out}.errors.csv").read_text() for out in ("local.parquet", "ray.dataset")]
    assert errors[0] == errors[1]


def test_errors_of_workers_and_of_settings_are_one_sentence(cluster, tiny, clips, tmp_path, monkeypatch):
    from m2d_hub.clients.ray import RayEngine

    def embed(out, model):
        m2d_hub.embed_files(clips, tmp_path / out, model=model, device="cpu", engine=RayEngine())

    with pytest.raises(m2d_hub.M2DError, match="nowhere"):
        embed("out.dataset", tmp_path / "nowhere")
    with pytest.raises(m2d_hub.ConfigError, match=r"the engine ray writes a \.dataset only"):
        embed("out.npz", "m2d-mini")
    assert not list(tmp_path.iterdir())
    tiny.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(
        "m2d_hub.clients.ray.Job.load_model", lambda self: tiny
    )  # of this process; workers load the folder's
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(m2d_hub.M2DError) as caught:
        embed("out.dataset", tmp_path / "tiny")
    assert "Traceback" not in str(caught.value) and "DataContext" not in str(caught.value)


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


def test_nothing_is_lost_or_repeated_if_the_driver_and_then_a_worker_is_killed(tmp_path):
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
    assert drive("worker") == 0
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert Counter(table["file"]) == Counter(str(path) for path in (tmp_path / "links").iterdir())
    expected = m2d_hub.load_model("m2d-mini", device="cpu").encode_clip(originals).numpy()
    for file, embedding in zip(table["file"], table["embedding"], strict=True):
        np.testing.assert_allclose(embedding, expected[int(file[-7:-4]) % 3], atol=1e-5)
