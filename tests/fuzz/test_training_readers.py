"""Readers of the training package on randomly damaged lists, shards and files of runs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from m2d_training.data.annotations import read_annotation
from m2d_training.data.entries import Entry, read_array, read_finite
from m2d_training.data.lists.make import make_list
from m2d_training.data.manifest import read_manifest
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.evaluation.report import REPORT_FILE
from m2d_training.finetuning.fold import BEST_FILE, RESULT_FILE, BestCheckpoint, FoldResult
from m2d_training.runs.folder import RunFolder, plot_metrics, read_config
from m2d_training.runs.state import read_state, write_tensors
from m2d_training.suites.summary import summarise

from ..training import test_lists as layouts


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(400, np.float32), 16_000, format="WAV")
    return file.getvalue()


def shard() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (("a.wav", wav()), ("a.json", b'{"label": ["dog"]}'), ("b.wav", wav())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_a_list_of_clips(tmp_path, fuzz):
    (tmp_path / "a.wav").write_bytes(wav())

    def read(data):
        (tmp_path / "list.csv").write_bytes(data)
        list(read_manifest(str(tmp_path / "list.csv")).entries)

    fuzz(b"file,label,caption,start_s,end_s\na.wav,dog;cat,a dog,0,0.01\na.wav,cat,,0.01,\n", read)


def test_a_labelled_list(tmp_path, fuzz):
    (tmp_path / "a.wav").write_bytes(wav())

    def read(data):
        (tmp_path / "list.csv").write_bytes(data)
        read_labelled(tmp_path / "list.csv")

    fuzz(
        b"file,label,split\n"
        + b"".join(
            b"a.wav,%s,%s\n" % (x, y) for x in (b"dog", b"cat") for y in (b"train", b"valid", b"test")
        ),
        read,
    )


def test_a_shard(tmp_path, fuzz):
    def read(data):
        (tmp_path / "a.tar").write_bytes(data)
        for entry in read_manifest(str(tmp_path)).entries:
            with entry.open() as file:
                file.read()

    fuzz(shard(), read)


def test_an_index_of_shards(tmp_path, fuzz):
    (tmp_path / "a.tar").write_bytes(shard())
    members = "shard,name,label,caption,offset,size,features_offset,features_size,shard_bytes\n"
    end = len(shard())
    rows = f"a.tar,a.wav,dog,,512,{len(wav())},0,0,{end}\na.tar,b.wav,,,3072,{len(wav())},0,0,{end}\n"

    def read(data):
        (tmp_path / "index.csv").write_bytes(data)
        for entry in read_manifest(str(tmp_path)).entries:
            with entry.open() as file:
                file.read()

    fuzz((members + rows).encode(), read)


def test_statistics(tmp_path, fuzz):
    (tmp_path / "a.wav").write_bytes(wav())

    def read(data):
        (tmp_path / "statistics.json").write_bytes(data)
        read_manifest(str(tmp_path))

    fuzz(b'{"mean": -7.1, "std": 4.2, "sample_rate": 16000}', read)


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
def test_an_annotation(name, fuzz):
    fuzz('{"label": ["dog", "cat"], "caption": "a dög"}'.encode(), lambda data: read_annotation(name, data))


def test_an_array(tmp_path, fuzz):
    file = io.BytesIO()
    np.save(file, np.ones((4, 8), np.float32))

    def read(data):
        (tmp_path / "a.npy").write_bytes(data)
        entry = Entry(path=str(tmp_path / "a.npy"), row=1)
        read_finite(entry, read_array(entry)[:2])

    fuzz(file.getvalue(), read)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["checkpoint", "best", "result"])
def test_files_of_a_run(kind, tmp_path, fuzz):
    weights = {"weight": torch.ones(2)}
    values, read_path = {
        "checkpoint": ({"step": 1, "model": weights, "optimizer": {"lr": 0.1}}, read_state),
        "best": ({"score": {"step": 1, "score": 0.5, "loss": 1.0}, "weights": weights}, BestCheckpoint.read),
        "result": (
            dict.fromkeys(
                ("best_epoch", "epochs", "valid_score", "valid_loss", "linear_valid_score", "seconds"), 1.0
            )
            | {"test_scores": torch.ones(2, 2)},
            lambda path: FoldResult.read(RunFolder(path.parent)),
        ),
    }[kind]
    path = tmp_path / {"checkpoint": "step-000000001.pt", "best": BEST_FILE, "result": RESULT_FILE}[kind]
    write_tensors(path, values)

    def read(data):
        path.write_bytes(data)
        read_path(path)

    fuzz(path.read_bytes(), read)


def test_a_runs_configuration(tmp_path, fuzz):
    def read(data):
        (tmp_path / "config.json").write_bytes(data)
        read_config(RunFolder(tmp_path))

    fuzz(b'{"config": {"epochs": 3, "batch_size": 4}, "steps_per_epoch": 2, "data": "list.csv"}', read)


def test_metrics(tmp_path, fuzz, monkeypatch):
    monkeypatch.setattr("m2d_training.evaluation.charts.draw_steps", lambda path, points: None)
    lines = [{"step": step, "loss": 1.0 / step, "lr": 0.1, "rank_me": None} for step in (1, 2, 3)]

    def read(data):
        (tmp_path / "metrics.jsonl").write_bytes(data)
        plot_metrics(tmp_path / "metrics.jsonl", tmp_path)

    fuzz("".join(json.dumps(line) + "\n" for line in lines).encode(), read)


@pytest.mark.slow
def test_a_report(tmp_path, fuzz):
    report = {
        "metric": "accuracy",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "per_seed": {"0": 0.5, "1": 0.5},
        "over_seeds": {"mean": 0.5, "plus_minus": 0.1},
        "settings": {"seed": 1},
        "model": "m2d-mini",
    }

    def read(data):
        (tmp_path / REPORT_FILE).write_bytes(data)
        summarise([tmp_path], out=tmp_path / "out")

    fuzz(json.dumps(report).encode(), read)


PUBLISHED = {
    "esc50": (layouts.esc50, "meta/esc50.csv"),
    "nsynth": (layouts.nsynth, "nsynth-train/examples.json"),
    "audioset": (layouts.audioset, "eval_segments.csv"),
    "icbhi2017": (layouts.icbhi2017, "101_1b1_Al_sc_Meditron.txt"),
    "sprsound": (layouts.sprsound, "train_json/65101170_0.4_1_p1_3246.json"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_table(name, tmp_path, fuzz):
    layout, table = PUBLISHED[name]
    folder = tmp_path / "data"
    layout(folder)
    path: Path = folder / table

    def read(data):
        path.write_bytes(data)
        make_list(name, folder, out=tmp_path / "list.csv")

    fuzz(path.read_bytes(), read)
