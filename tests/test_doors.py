"""Every reader of files in both packages, on what is damaged, missing or forbidden: one kind of answer."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from m2d_training.data.entries import Entry, read_array
from m2d_training.data.images import crop_image
from m2d_training.data.lists.make import make_list
from m2d_training.data.manifest import read_manifest
from m2d_training.data.shards import index_shards, write_index
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.evaluation.report import REPORT_FILE, read_report
from m2d_training.finetuning.fold import BEST_FILE, RESULT_FILE, BestCheckpoint, FoldResult
from m2d_training.linear.features import StoredFeatures
from m2d_training.pretraining.teachers import _is_hubert_folder
from m2d_training.runs.folder import RunFolder, read_config
from m2d_training.runs.log import read_metrics
from m2d_training.runs.state import read_state, write_tensors
from m2d_training.suites.task_lists import task_list

import m2d_hub
from m2d_hub import AudioError, CheckpointError, ChecksumError, ConfigError, M2DError
from m2d_hub.audio import open_audio
from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.corpus.formats import INDEX, SETTINGS
from m2d_hub.corpus.stored import read_embeddings
from m2d_hub.corpus.tables import read_table
from m2d_hub.pretrained.checkpoint import load_checkpoint
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.release import ORIGIN_FILE, extract_checkpoint, read_origin, write_origin

from .nobody import as_nobody
from .training import test_lists as layouts

NOISE = np.random.default_rng(0).bytes(3_000)
WEIGHTS = {"weight": torch.ones(2)}


@dataclass(frozen=True)
class Reader:
    """One reader of files."""

    write: Callable[[Path], Path]  # into a folder, a file that it reads
    read: Callable[[Path], object]
    failure: type[M2DError]
    may_read: frozenset[str] = frozenset()  # damages that leave something to read


def written(name: str, content: bytes | str) -> Callable[[Path], Path]:
    """Writes a file."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def kept(name: str, values: object) -> Callable[[Path], Path]:
    """Writes tensors of a run."""

    def write(folder: Path) -> Path:
        write_tensors(folder / name, values)
        return folder / name

    return write


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.3, 0.3, 4_000), 16_000, format="WAV")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((4, 8), np.float32))
    return file.getvalue()


def read_audio(path: Path) -> object:
    [clip] = open_audio(path, 16_000)
    return list(clip.blocks())


def png(folder: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.frombuffer(NOISE[:1_200], np.uint8).reshape(20, 20, 3)).save(folder / "a.png")
    return folder / "a.png"


def shard(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.size = len(wav())
        tar.addfile(info, io.BytesIO(wav()))
    return folder / "a.tar"


def shard_index(folder: Path) -> Path:
    write_index(folder / "index.csv", index_shards([str(shard(folder))]))
    return folder / "index.csv"


def whole_shard(path: Path) -> list[bytes]:
    return [entry.open().read() for entry in read_manifest(str(path)).entries]


def statistics(folder: Path) -> Path:
    written("a.wav", wav())(folder)
    return written("statistics.json", '{"mean": -7.1, "std": 4.2, "sample_rate": 16000}')(folder)


def labelled(folder: Path) -> Path:
    written("a.wav", wav())(folder)
    return written("list.csv", TABLE)(folder)


def extracted(path: Path) -> None:
    extract_checkpoint(path, path.parent).unlink()


def release(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/checkpoint.pth", NOISE)
    return folder / "a.zip"


def download_record(folder: Path) -> Path:
    written("model.safetensors", NOISE)(folder)
    write_origin(folder, {"zip_bytes": 3})
    return folder / ORIGIN_FILE


def saved(name: str) -> Callable[[Path], Path]:
    """A file of a model's folder."""

    def write(folder: Path) -> Path:
        torch.manual_seed(0)
        encoder = EncoderConfig(input_size=(80, 16), embed_dim=64, depth=1)
        m2d_hub.M2D(ModelConfig(encoder=encoder)).save_pretrained(folder)
        return folder / name

    return write


def published(folder: Path) -> Path:
    weights = load_checkpoint(saved("model.safetensors")(folder).parent).tensors
    tensors = {name.removeprefix("encoder."): tensor.clone() for name, tensor in weights.items()}
    torch.save({"model": tensors}, folder / "a.pth")
    return folder / "a.pth"


def output(name: str, inside: str = "") -> Callable[[Path], Path]:
    """An output of embed_files, or a file in it."""

    def write(folder: Path) -> Path:
        pytest.importorskip("pyarrow")
        written("a.wav", wav())(folder)
        model = saved("model.safetensors")(folder / "model").parent
        m2d_hub.embed_files(folder / "a.wav", folder / name, model=model, kind="frames")
        return folder / name / inside

    return write


def records(path: Path) -> object:
    return list(read_embeddings(path).rows())


def report(folder: Path) -> Path:
    figures = {"value": 0.5, "low": 0.4, "high": 0.6, "per_seed": {"0": 0.5}}
    values = {"metric": "accuracy", "over_seeds": {"mean": 0.5, "plus_minus": None}} | figures
    return written(REPORT_FILE, json.dumps(values))(folder)


def features(folder: Path) -> Path:
    safetensors.torch.save_file({"features": torch.ones(1, 1, 4)}, folder / "a.safetensors")
    return folder / "a.safetensors"


def cached(path: Path) -> object:
    return StoredFeatures(["a.wav"], {}, 0, {0: (path, 0)}).layer(0)


def notes(folder: Path) -> Path:
    layouts.esc50(folder / "data" / "esc50")
    task_list("esc50", folder / "data", folder / "lists")
    return folder / "lists" / "esc50.json"


def of_layout(layout: Callable[[Path], object], file: str) -> Callable[[Path], Path]:
    """A file of a public data set."""

    def write(folder: Path) -> Path:
        layout(folder / "data")
        return folder / "data" / file

    return write


def relist(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        data = next(parent for parent in path.parents if parent.name == "data")
        return make_list(name, data, out=data.parent / "list.csv")

    return read


TABLE = "file,label,split\n" + "".join(
    f"a.wav,{label},{split}\n" for label in ("dog", "cat") for split in ("train", "valid", "test")
)
TEXT = frozenset({"truncated"})  # of which the first half is text of its kind
GONE = frozenset({"missing"})  # what is not there is done without
READERS = {
    "audio": Reader(written("a.wav", wav()), read_audio, AudioError, TEXT),
    "a table": Reader(written("a.csv", TABLE), lambda path: read_table(path, ["file"]), ConfigError, TEXT),
    "weights": Reader(saved("model.safetensors"), load_checkpoint, CheckpointError),
    "a configuration": Reader(
        saved("config.json"), lambda path: load_checkpoint(path.parent), CheckpointError, GONE | {"folder"}
    ),
    "published weights": Reader(
        published, lambda path: read_published(path, sample_rate=16_000), CheckpointError
    ),
    "a zip": Reader(release, extracted, CheckpointError),
    "a download": Reader(download_record, lambda path: read_origin(path.parent), ChecksumError),
    "an .npz": Reader(output("out.npz"), records, ConfigError),
    "a .safetensors": Reader(output("out.safetensors"), records, ConfigError),
    "a .parquet": Reader(output("out.parquet"), records, ConfigError),
    **{
        f"{name} of a folder": Reader(
            output("out", name), lambda path: records(path.parent), ConfigError, TEXT & found
        )
        for name, found in ((SETTINGS, frozenset()), (INDEX, TEXT), ("a.wav.npy", frozenset()))
    },
    "a list": Reader(
        written("list.csv", TABLE), lambda path: list(read_manifest(str(path)).entries), ConfigError, TEXT
    ),
    "a labelled list": Reader(labelled, read_labelled, ConfigError, TEXT),
    "a shard": Reader(shard, whole_shard, ConfigError),
    "an index of shards": Reader(
        shard_index, lambda path: whole_shard(path.parent), ConfigError, TEXT | GONE | {"folder"}
    ),
    "statistics": Reader(
        statistics, lambda path: read_manifest(str(path.parent)), ConfigError, GONE | {"folder"}
    ),
    "an array": Reader(written("a.npy", npy()), lambda path: read_array(Entry(str(path))), AudioError),
    "a picture": Reader(
        png, lambda path: crop_image(Entry(str(path)), (8, 8), np.random.default_rng(0)), AudioError
    ),
    "a run's configuration": Reader(
        written("config.json", '{"config": {"epochs": 3}}'),
        lambda path: read_config(RunFolder(path.parent)),
        CheckpointError,
    ),
    "a checkpoint": Reader(
        kept("step-000000001.pt", {"step": 1, "model": WEIGHTS, "optimizer": {}}), read_state, CheckpointError
    ),
    "the best epoch": Reader(
        kept(BEST_FILE, {"score": {"step": 1, "score": 0.5, "loss": 1.0}, "weights": WEIGHTS}),
        BestCheckpoint.read,
        CheckpointError,
        GONE,
    ),
    "a result": Reader(
        kept(RESULT_FILE, dict.fromkeys((field.name for field in fields(FoldResult)), 1.0)),
        lambda path: FoldResult.read(RunFolder(path.parent)),
        CheckpointError,
        GONE,
    ),
    "metrics": Reader(
        written("metrics.jsonl", '{"step": 1, "loss": 1.0}\n'),
        read_metrics,
        CheckpointError,
        GONE | {"truncated", "empty", "noise"},
    ),
    "a report": Reader(report, lambda path: read_report(path.parent), CheckpointError),
    "cached features": Reader(features, cached, CheckpointError),
    "notes of a list": Reader(
        notes,
        lambda path: task_list("esc50", path.parents[1] / "data", path.parent),
        CheckpointError,
        GONE,
    ),
    "notes of NSynth": Reader(
        of_layout(layouts.nsynth, "nsynth-train/examples.json"), relist("nsynth"), ConfigError
    ),
    "annotations of SPRSound": Reader(
        of_layout(layouts.sprsound, "train_json/65101170_0.4_1_p1_3246.json"),
        relist("sprsound"),
        ConfigError,
        GONE | {"folder"},
    ),
    "annotations of ICBHI": Reader(
        of_layout(layouts.icbhi2017, "101_1b1_Al_sc_Meditron.txt"),
        relist("icbhi2017"),
        ConfigError,
        TEXT | {"empty"},
    ),
    "a HuBERT's configuration": Reader(
        written("config.json", '{"model_type": "hubert"}'),
        lambda path: _is_hubert_folder(path.parent),
        CheckpointError,
        GONE | {"truncated", "empty", "folder"},
    ),
}
DAMAGES = ("truncated", "empty", "noise", "folder", "missing", "forbidden")


def damage(path: Path, kind: str) -> None:
    """Does it to a file."""
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        changed = {"truncated": content[: len(content) // 2], "empty": b"", "noise": NOISE}
        path.write_bytes(changed.get(kind, content))
        path.chmod(0o000 if kind == "forbidden" else 0o644)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_names_what_it_cannot_read(name, kind, tmp_path):
    reader = READERS[name]
    path = reader.write(tmp_path)
    reader.read(path)  # it can, and has imported what it needs
    damage(path, kind)
    with as_nobody(tmp_path) if kind == "forbidden" else contextlib.nullcontext():
        try:
            reader.read(path)
        except reader.failure as error:
            told = str(error)
        else:
            assert kind in reader.may_read
            return
    assert path.name in told or str(path.parent) in told
    if kind == "forbidden":
        assert "cannot be opened (Permission denied); check its name and permissions." in told


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(name, tmp_path):
    reader = READERS[name]
    path = reader.write(tmp_path)
    reader.read(path)
    path.unlink()
    os.mkfifo(path)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    try:
        with contextlib.suppress(reader.failure):  # or it is passed over, as what is not there
            reader.read(path)
    finally:
        signal.alarm(0)
