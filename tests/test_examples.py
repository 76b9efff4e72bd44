"""The example scripts, run as a user would: on real clips, in a separate process and folder."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.pretraining.presets import load_preset

import m2d_hub

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["search_by_example", "linear_evaluation", "fine_tuning", "further_pretraining"]


def run_example(name, folder, *arguments):
    """Run a script in ``folder``, and return the lines that it prints."""
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a model with the sizes of m2d-mini and random weights."""
    sizes = load_preset("m2d-mini").config
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    m2d_hub.M2D(m2d_hub.ModelConfig(sizes.frontend, sizes.encoder)).save_pretrained(folder)
    return folder


@pytest.fixture
def exit_message(monkeypatch):
    """Message or status that a script exits with: ``exit_message(name, *arguments)``."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return ended.value.code

    return run


@pytest.fixture
def labelled(clips, tmp_path):
    """A list of real clips with two training clips per class."""
    path = tmp_path / "labelled.csv"
    splits = {"1": "train", "2": "train", "3": "valid", "4": "test"}
    listed = read_labelled(EXAMPLES / "clips.csv").clips
    rows = [[clip.file, *clip.labels, splits[clip.split]] for clip in listed]
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return path


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_an_example_and_the_script_fits_on_a_page(name, exit_message, capsys):
    assert exit_message(name, "--help") == 0
    assert f"python examples/{name}.py " in capsys.readouterr().out
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60


def test_search_prints_the_same_speaker_first_and_stores_the_embeddings(model, clips, tmp_path):
    query = clips / "speech_it_1.wav"
    arguments = [clips, query, "--top", 13, "--model", model]
    title, *found = run_example("search_by_example", tmp_path, *arguments)
    assert title == f"similarity to {query}"
    scores, files = zip(*[line.split() for line in found], strict=True)
    assert files[0] == str(clips / "speech_it_2.wav")
    assert len(set(files)) == 13 and str(query) not in files
    assert list(scores) == sorted(scores, key=float, reverse=True)
    with np.load(tmp_path / "embeddings.npz") as stored:
        assert stored["embedding"].shape == (14, 8 * 192)


@pytest.mark.slow
def test_linear_evaluation_prints_each_class_the_interval_and_the_report_folder(model, labelled, tmp_path):
    options = ["--out", "run", "--model", model]
    *classes, figure, where = run_example("linear_evaluation", tmp_path, labelled, *options)
    assert [line.split()[0] for line in classes] == ["music", "nature", "speech"]
    assert all(re.search(r" \d+\.\d %  of 1 test clips$", line) for line in classes)
    assert re.fullmatch(r"accuracy \d+\.\d % \(95 %: \d+\.\d-\d+\.\d\) on 3 test clips", figure)
    report = json.loads((tmp_path / where.split()[-1] / "report.json").read_text())
    assert f"accuracy {100 * report['value']:.1f} %" in figure


@pytest.mark.slow
def test_fine_tuning_prints_the_interval_and_tags_a_new_clip(model, labelled, clips, tmp_path):
    clip = clips / "speech_en_1.wav"
    options = ["--out", "run", "--epochs", 1, "--model", model]
    figure, name, *tags = run_example("fine_tuning", tmp_path, labelled, clip, *options)
    assert re.match(r"accuracy \d+\.\d % \(95 %: \d+\.\d-\d+\.\d\) on 3 test clips\.", figure)
    assert name == f"Tags of {clip} with run/export:"
    assert sorted(tag.split()[1] for tag in tags) == ["music", "nature", "speech"]
    assert sum(float(tag.split()[0]) for tag in tags) == pytest.approx(1.0, abs=0.002)
    assert m2d_hub.load_model(tmp_path / "run" / "export").labels == ["music", "nature", "speech"]


@pytest.mark.slow
def test_further_pretraining_writes_a_changed_model_and_its_embeddings(model, clips, tmp_path):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for name in ("speech_it_1.wav", "speech_it_2.wav", "tabla_stroke.flac", "bang_explosion.ogg"):
        shutil.copy(clips / name, sounds)
    options = ["--out", "run", "--epochs", 2, "--batch-size", 4, "--model", model]
    assert run_example("further_pretraining", tmp_path, "sounds", *options)[0] == "Model: run/export"
    before, after = (m2d_hub.load_model(path, device="cpu") for path in (model, tmp_path / "run" / "export"))
    moved = after.encoder.norm.weight - before.encoder.norm.weight
    assert 0 < moved.abs().max() < 0.01  # one step with a rate above zero, from the weights given
    with np.load(tmp_path / "run" / "embeddings.npz") as stored:
        paths = [tmp_path / file for file in stored["file"].tolist()]
        assert stored["embedding"] == pytest.approx(after.encode_clip(paths).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("search_by_example", ["none", "clip.wav"], "Error: none is not a folder."),
        ("linear_evaluation", ["list.csv", "--out", "run"], "Error: list.csv "),
        ("fine_tuning", ["list.csv", "none.wav", "--out", "run"], "Error: none.wav does not exist."),
        ("further_pretraining", ["folder", "--out", "run"], "Error: folder "),
    ],
)
def test_mistakes_end_in_one_line(name, arguments, message, exit_message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.csv").write_text("file,label\nclip.wav,speech\n")
    printed = exit_message(name, *arguments)
    assert printed.startswith(message) and "\n" not in printed
