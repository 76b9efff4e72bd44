"""Files that are damaged, missing, forbidden or not files: one kind of error, which names them.

The mechanism is tested with every damage; each reader of both packages is tested with a pipe, which blocks a
reader that does not use the mechanism. Damaged contents of each reader are tested in ``tests/fuzz``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal

import numpy as np
import pytest
from m2d_training.data.entries import Entry, read_array
from m2d_training.data.images import crop_image
from m2d_training.data.manifest import read_manifest
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.evaluation.report import REPORT_FILE, read_report
from m2d_training.finetuning.fold import BEST_FILE, RESULT_FILE, BestCheckpoint, FoldResult
from m2d_training.linear.features import StoredFeatures
from m2d_training.runs.folder import RunFolder, read_config, read_metrics
from m2d_training.runs.state import read_state

from m2d_hub import AudioError, CheckpointError, ChecksumError, ConfigError, M2DError
from m2d_hub.audio import open_audio
from m2d_hub.corpus.stored import read_embeddings
from m2d_hub.corpus.tables import read_table
from m2d_hub.io import open_file, reading, reading_file
from m2d_hub.pretrained.checkpoint import load_checkpoint
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.release import ORIGIN_FILE, extract_checkpoint, read_origin

from .nobody import as_nobody

WHOLE = '{"step": 1}'
DAMAGES = {
    "truncated": (WHOLE[:5], r"a\.json cannot be read as settings \(.+\)\. Write it again\."),
    "empty": ("", r"a\.json cannot be read as settings \(.+\)\. Write it again\."),
    "noise": ("\0\1", r"a\.json cannot be read as settings \(.+\)\. Write it again\."),
    "nested": ("[" * 200_000, r"a\.json cannot be read as settings \(.+\)\. Write it again\."),
    "folder": (None, r"a\.json is a folder, not settings\."),
    "missing": (None, r"a\.json does not exist; give settings\."),
    "forbidden": (WHOLE, r"a\.json cannot be opened \(Permission denied\); check its name and permissions\."),
    "pipe": (None, r"a\.json is a pipe or a device, not settings; write its contents to a file\."),
}


@contextlib.contextmanager
def time_limit():
    """Fail after 20 s."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the reader blocks"))
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_one_kind_of_error_that_names_the_file(damage, tmp_path):
    content, message = DAMAGES[damage]
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "forbidden":
        path.chmod(0)
    user = as_nobody(tmp_path) if damage == "forbidden" else contextlib.nullcontext()
    with (
        user,
        time_limit(),
        pytest.raises(AudioError, match=message),
        reading_file(path, "settings", "Write it again.", AudioError),
    ):
        json.loads(path.read_text())


def test_names_that_no_file_system_takes_are_errors_of_the_package():
    for name in ("a\0b", "x" * 5_000):
        with pytest.raises(ConfigError, match="cannot be opened"):
            open_file(name, "settings", ConfigError)


def test_errors_of_the_package_and_a_full_disk_pass_unchanged():
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (ChecksumError("another"), full):
        with pytest.raises(type(error)) as caught, reading("a", "settings", "Hint.", ConfigError):
            raise error
        assert caught.value is error


def first_block(path):
    [clip] = open_audio(path, 16_000)
    return next(clip.blocks())


READERS = {
    "audio": ("a.wav", first_block, AudioError),
    "a table": ("a.csv", lambda path: read_table(path, ["file"]), ConfigError),
    "weights": ("model.safetensors", load_checkpoint, CheckpointError),
    "published weights": ("a.pth", lambda path: read_published(path, sample_rate=16_000), CheckpointError),
    "a zip": ("a.zip", lambda path: extract_checkpoint(path, path.parent), CheckpointError),
    "a download": (ORIGIN_FILE, lambda path: read_origin(path.parent), ChecksumError),
    "an .npz": ("a.npz", read_embeddings, ConfigError),
    "a .safetensors": ("a.safetensors", read_embeddings, ConfigError),
    "a .parquet": ("a.parquet", read_embeddings, ConfigError),
    "a list": ("a.csv", lambda path: read_manifest(str(path)), ConfigError),
    "a labelled list": ("a.csv", read_labelled, ConfigError),
    "a shard": ("a.tar", lambda path: read_manifest(str(path)), ConfigError),
    "an array": ("a.npy", lambda path: read_array(Entry(str(path))), AudioError),
    "an image": (
        "a.png",
        lambda path: crop_image(Entry(str(path)), (8, 8), np.random.default_rng(0)),
        AudioError,
    ),
    "a run's configuration": (
        "config.json",
        lambda path: read_config(RunFolder(path.parent)),
        CheckpointError,
    ),
    "a checkpoint": ("step-000000001.pt", read_state, CheckpointError),
    "the best epoch": (BEST_FILE, BestCheckpoint.read, CheckpointError),
    "a result": (RESULT_FILE, lambda path: FoldResult.read(RunFolder(path.parent)), CheckpointError),
    "metrics": ("metrics.jsonl", read_metrics, CheckpointError),
    "a report": (REPORT_FILE, lambda path: read_report(path.parent), CheckpointError),
    "cached features": (
        "a.safetensors",
        lambda path: StoredFeatures(["a.wav"], {}, 0, {0: (path, 0)}).layer(0),
        CheckpointError,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_blocks_on_a_pipe(name, tmp_path):
    file, read, failure = READERS[name]
    os.mkfifo(tmp_path / file)
    with time_limit(), pytest.raises(M2DError, match=r"is a pipe or a device|does not exist") as caught:
        read(tmp_path / file)
    assert type(caught.value) is failure
    assert file in str(caught.value) or str(tmp_path) in str(caught.value)
