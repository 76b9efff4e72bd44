"""Suites: the tasks whose data sets a folder holds, run one after another into one table."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from m2d_training import run_suite
from m2d_training.cli.main import main
from m2d_training.suites import run as suite_run
from m2d_training.suites.run import SuiteResult, TaskResult

import m2d_hub

RATE = 16_000
FAST = {"max_epochs": 3, "device": "cpu"}


def tone(path, label, seed, seconds=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(RATE * seconds)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(times))
    soundfile.write(path, 0.2 * (np.sin(2e3 * times + seed) if label else 0.3 * noise), RATE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """ESC-50 in three folds as published, CREMA-D with its split, and a list for GTZAN."""
    folder = tmp_path_factory.mktemp("datasets")
    table = ["filename,fold,target,category"]
    for index in range(12):
        tone(folder / "ESC-50-master" / "audio" / f"{index}.wav", index % 2, index)
        table.append(f"{index}.wav,{1 + index // 4},{index % 2},{('rain', 'siren')[index % 2]}")
    (folder / "ESC-50-master" / "meta").mkdir()
    (folder / "ESC-50-master" / "meta" / "esc50.csv").write_text("\n".join(table))
    split = ["file_name,split"]
    for index in range(6):
        name = f"10{index:02d}_DFA_{('ANG', 'HAP')[index % 2]}_XX.wav"
        tone(folder / "cremad" / "AudioWAV" / name, index % 2, index)
        split.append(f"{name},{('train', 'val', 'test')[index // 2]}")
    (folder / "cremad-split.csv").write_text("\n".join(split))
    rows = ["file,label,split"]
    for index in range(6):
        tone(folder / "music" / f"{index}.wav", index % 2, index)
        rows.append(f"music/{index}.wav,{'ab'[index % 2]},{('train', 'valid', 'test')[index // 2]}")
    (folder / "gtzan.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def linear(data, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("linear")
    result = run_suite("paper-linear", model=model, data=data, out=out, seeds=2, progress=False, **FAST)
    return result


def by_task(result):
    return {task.task: task for task in result.tasks}


def test_present_data_sets_are_evaluated_and_missing_ones_listed(linear, data):
    tasks = by_task(linear)
    assert list(tasks) == ["esc50", "us8k", "spcv2", "vc1", "voxforge", "cremad", "gtzan", "nsynth", "surge"]
    assert {name for name, task in tasks.items() if task.status == "done"} == {"esc50", "cremad", "gtzan"}
    assert tasks["us8k"].status == "missing"
    assert tasks["us8k"].note == f"{data} contains neither us8k.csv nor a folder us8k/ of UrbanSound8K"
    assert "2,000 are published" in tasks["esc50"].note


def test_figures_are_those_of_the_tasks_reports_and_the_mean_is_theirs(linear):
    done = [task for task in linear.tasks if task.status == "done"]
    for task in done:
        report = json.loads((linear.out / task.task / "report.json").read_text())
        assert task.value == pytest.approx(100 * report["value"])
        assert task.plus_minus == pytest.approx(100 * report["over_seeds"]["plus_minus"])
    assert linear.mean == pytest.approx(np.mean([task.value for task in done]))


def test_the_papers_protocol_is_used(linear):
    settings = json.loads((linear.out / "esc50" / "report.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["duration"], settings["seeds"]) == (3e-5, 5.0, [42, 43])
    assert settings["valid_share"] == 0.1  # folds: all others train, a tenth is held out
    assert json.loads((linear.out / "gtzan" / "report.json").read_text())["settings"]["valid_share"] == 0


def test_the_table_has_a_row_a_task_and_the_mean(linear):
    with (linear.out / "suite.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["task"] for row in rows][-1] == "mean" and len(rows) == 10
    assert rows[-1]["note"] == "3 of 9 tasks" and rows[-1]["value"] == f"{linear.mean:.2f}"
    assert "80.2 m2d-0.7" in rows[-1]["authors"]
    assert json.loads((linear.out / "suite.json").read_text())["mean"] == pytest.approx(linear.mean)


def test_a_resumed_suite_runs_only_unfinished_tasks(linear, data, model, monkeypatch):
    evaluated = []
    real = suite_run.linear_eval
    monkeypatch.setattr(
        suite_run,
        "linear_eval",
        lambda **options: (evaluated.append(options["out"].name), real(**options))[1],
    )
    shutil.rmtree(linear.out / "gtzan")
    again = run_suite("paper-linear", model=model, data=data, out=linear.out, seeds=2, progress=False, **FAST)
    assert evaluated == ["gtzan"]
    assert again.tasks == linear.tasks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 3}, "holds another run: seeds was 2, is 3"),
        ({"suite": "icbhi"}, "suite was 'paper-linear', is 'icbhi'"),
        ({"tasks": ["esc51"]}, "tasks of paper-linear are esc50, us8k.*; got esc51"),
        ({"suite": "paper"}, "Unknown suite 'paper'. Available: paper-linear, paper-finetune, icbhi"),
        ({"data": "/nowhere"}, "data must be a folder of data sets, got /nowhere"),
    ],
)
def test_another_suite_in_the_folder_is_refused(linear, data, model, changes, message):
    options = {"suite": "paper-linear", "model": model, "data": data, "out": linear.out, "seeds": 2} | FAST
    with pytest.raises(m2d_hub.ConfigError, match=message):
        run_suite(**(options | changes))


def test_a_folder_without_any_of_the_data_sets_is_refused(model, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(m2d_hub.ConfigError, match=r"contains none of the data sets of icbhi \(icbhi2017\)"):
        run_suite("icbhi", model=model, data=tmp_path / "data", out=tmp_path / "out")


def test_a_failing_task_does_not_stop_the_others(data, model, tmp_path):
    folder = tmp_path / "data"
    (folder / "cremad").mkdir(parents=True)
    tone(folder / "cremad" / "AudioWAV" / "1001_DFA_ANG_XX.wav", 1, 0)
    (folder / "gtzan.csv").write_text((data / "gtzan.csv").read_text().replace("music/", f"{data}/music/"))
    arguments = ["suite", "paper-linear", "--model", str(model), "--data", str(folder), "--seeds", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--set", "max_epochs=2", "--json"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 3, answer.output
    result = json.loads(answer.stdout)
    failed, done = (next(t for t in result["tasks"] if t["task"] == name) for name in ("cremad", "gtzan"))
    assert failed["status"] == "failed" and "cremad-split.csv" in failed["note"]
    assert done["status"] == "done" and (result["done"], result["failed"]) == (1, 1)


def test_settings_that_are_not_allowed_are_refused_before_any_task(data, model, tmp_path):
    arguments = ["suite", "paper-linear", "--model", str(model), "--data", str(data), "--out"]
    answer = CliRunner().invoke(main, [*arguments, str(tmp_path / "out"), "--set", "learning_rate=-1"])
    assert answer.exit_code == 1 and "learning_rate must be greater than 0, got" in answer.output
    assert not (tmp_path / "out").exists()


@pytest.fixture
def lungs(tmp_path):
    """ICBHI 2017 as published: four training recordings and two of the test."""
    folder = tmp_path / "datasets" / "ICBHI_final_database"
    lines = []
    for index in range(6):
        name = f"10{index}_1b1_Al_sc_Meditron"
        tone(folder / f"{name}.wav", index % 2, index, seconds=1.0)
        (folder / f"{name}.txt").write_text(f"0.0\t0.5\t{index % 2}\t0\n0.5\t1.0\t{(index + 1) % 2}\t0\n")
        lines.append(f"{name}\t{'test' if index > 3 else 'train'}")
    (folder / "ICBHI_challenge_train_test.txt").write_text("\n".join(lines))
    return folder.parent


def test_icbhi_is_fine_tuned_with_the_papers_epoch_and_printed_beside_its_figures(lungs, model, tmp_path):
    arguments = [
        "suite",
        "icbhi",
        "--model",
        str(model),
        "--data",
        str(lungs),
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--seeds", "2", "--set", "epochs=1", "--set", "crop_frames=64", "--set", "cosine_epochs=1"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 0, answer.output
    assert "61.93 M2D/0.7 16x4; 63.29 M2D-X" in answer.stdout
    assert "best on test, as in the paper" in answer.stdout
    report = json.loads((tmp_path / "out" / "icbhi2017" / "report.json").read_text())
    assert report["test_clips"] == 4 and list(report["per_seed"]) == ["42", "43"]


def test_the_models_own_published_figure_alone_stands_beside_it(tmp_path):
    tasks = (TaskResult("as2m", "done", "mAP", 47.0, authors={"m2d-0.7": 47.9, "m2d-as-0.7": 48.5}),)
    shown = SuiteResult("paper-finetune", "m2d-as-0.7", tasks, {}, tmp_path).text()
    assert "48.5 m2d-as-0.7" in shown and "47.9" not in shown
