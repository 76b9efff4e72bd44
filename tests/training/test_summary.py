"""Summaries: the mean over all trainings of several runs, and the score over epochs and fields."""

import csv
import json

import pytest
from click.testing import CliRunner
from m2d_training.cli.main import main
from m2d_training.suites.summary import summarise

import m2d_hub


def evaluated(folder, figures, model="m2d-mini", metric="accuracy", **settings):
    """Write the report of a linear evaluation or fine-tuning."""
    folder.mkdir(parents=True)
    per_seed = {str(42 + seed): figure for seed, figure in enumerate(figures)}
    report = {"metric": metric, "per_seed": per_seed, "model": str(model), "settings": settings}
    report |= {"value": 0.5, "low": 0.4, "high": 0.6, "over_seeds": {"plus_minus": None}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def pretrained(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"steps_per_epoch": 10, "config": config}))
    return folder


def test_the_mean_is_over_all_trainings_of_all_runs_with_students_interval(tmp_path):
    runs = [
        evaluated(tmp_path / name, figures) for name, figures in (("a", [0.60, 0.62]), ("b", [0.64, 0.66]))
    ]
    found = summarise(runs, out=tmp_path / "out")
    (row,) = found.rows
    assert (row.value, row.runs, row.trainings) == ("all", 2, 4)
    assert row.mean == pytest.approx(63.0)
    # Student's t of 3 degrees of freedom is 3.1824; the standard deviation of 60, 62, 64, 66 is 2.5820.
    assert row.plus_minus == pytest.approx(3.1824 * 2.5820 / 2, rel=1e-4)
    assert found.picture is None
    with found.table.open(newline="") as table:
        assert next(iter(csv.DictReader(table)))["plus_minus"] == "4.11"


def test_scores_are_plotted_over_the_epochs_of_kept_checkpoints(tmp_path):
    run = pretrained(tmp_path / "run")
    runs = [
        evaluated(
            tmp_path / str(step), [step / 2000, step / 1000], run / "checkpoints" / f"step-{step:09d}.pt"
        )
        for step in (1000, 200)
    ]
    found = summarise(runs, out=tmp_path / "out", by="epoch")
    assert [(float(row.value), row.mean) for row in found.rows] == [
        (20, pytest.approx(15)),
        (100, pytest.approx(75)),
    ]
    assert found.picture.stat().st_size > 1000


def test_the_command_sweeps_a_field_of_the_pretraining_and_of_the_evaluation(tmp_path):
    runs = [
        evaluated(
            tmp_path / f"eval-{ratio}",
            [ratio],
            pretrained(tmp_path / f"run-{ratio}", mask_ratio=ratio) / "export",
            lr=lr,
        )
        for ratio, lr in ((0.7, 1e-3), (0.5, 1e-3), (0.6, 1e-2))
    ]
    for by, values in (("mask_ratio", ["0.5", "0.6", "0.7"]), ("lr", ["0.001", "0.01"])):
        arguments = ["summarise", *map(str, runs), "--by", by, "--out", str(tmp_path / by), "--json"]
        answer = CliRunner().invoke(main, arguments)
        assert answer.exit_code == 0, answer.output
        assert [row["value"] for row in json.loads(answer.stdout)["rows"]] == values
        assert (tmp_path / by / "summary.png").is_file()


@pytest.mark.parametrize(
    ("options", "by", "message"),
    [
        ({"metric": "mAP"}, None, "of one metric; got accuracy, mAP"),
        ({}, "mask_ratio", "has no value for mask_ratio: its model m2d-mini is not of a pre-training"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, options, by, message):
    runs = [evaluated(tmp_path / "a", [0.5]), evaluated(tmp_path / "b", [0.5], **options)]
    with pytest.raises(m2d_hub.ConfigError, match=message):
        summarise(runs, out=tmp_path / "out", by=by)
    with pytest.raises(m2d_hub.ConfigError, match=r"has no report\.json"):
        summarise([tmp_path], out=tmp_path / "out")
