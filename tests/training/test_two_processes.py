"""Runs of two processes that torchrun starts: what one process records, and the same again after a kill.

Two processes with batches of B see in every step the clips that one sees with two batches of B, so that what
is expected of them is what one process with ``accumulate_steps=2`` does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main

import m2d_hub

from ..processes import TRAIN_ON_TWO, finish, kill_when
from ..signals import write_tones

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]

RATE = 16_000
SPLITS = {"train": 11, "valid": 5, "test": 7}  # none is a multiple of two processes' batches
PRETRAIN = (
    "input_size=80x64 embed_dim=64 depth=2 predictor_dim=64 predictor_depth=1 batch_size=2 epochs=4 "
    "warmup_epochs=0 base_lr=0.1 save_every_steps=3 linear_eval_every_epochs=2 noise_ratio=0.2"
)
FINETUNE = "epochs=4 min_steps=0 batch_size=2 save_every_steps=3 patchout_ratio=0.3 patience=none"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A list of short tones of two pitches in noise, of different lengths."""
    splits = [name for name, count in SPLITS.items() for _ in range(count)]
    return write_tones(tmp_path_factory.mktemp("sounds"), splits)


@pytest.fixture(scope="module")
def commands(labelled, tiny_config, tmp_path_factory):
    """Arguments of a run of a kind into a folder: ``commands(kind, out, *settings)``."""
    torch.manual_seed(0)
    model = tmp_path_factory.mktemp("model")
    m2d_hub.M2D(tiny_config).save_pretrained(model)
    header, *rows = labelled.read_text().splitlines()
    valid = labelled.with_name("valid.csv")  # 35 clips: two groups of 16 and one of 3
    lines = [header, *rows, *rows[:12]]
    valid.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))  # without the split
    lists = ["--valid", valid, "--labelled", labelled, "--noise", labelled, "--start", "none"]
    fixed = {
        "pretrain": ["pretrain", "m2d-as", *lists, *_set(PRETRAIN)],
        "finetune": ["finetune", "small", "--model", model, *_set(FINETUNE)],
    }

    def arguments(kind, out, settings=""):
        return [str(part) for part in (*fixed[kind], "--data", labelled, "--out", out, *_set(settings))]

    return arguments


def _set(settings):
    return [part for setting in settings.split() for part in ("--set", setting)]


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def unbroken(kind, commands, tmp_path_factory):
    """Folder of a run of two processes."""
    out = tmp_path_factory.mktemp("unbroken")
    answer = finish([*TRAIN_ON_TWO, *commands(kind, out)])
    assert answer.stdout.count(f"{out / 'export'}") == 1, "the first process alone answers"
    return out


def metrics_file(kind, out):
    return Path(out) / {"pretrain": "", "finetune": "trainings/test-seed-42"}[kind] / "metrics.jsonl"


def metrics_of(kind, out):
    return [json.loads(line) for line in metrics_file(kind, out).read_text().splitlines()]


def weights_of(out):
    return m2d_hub.load_model(out / "export", device="cpu").state_dict()


def test_two_processes_do_what_one_does_with_the_whole_batch(kind, commands, unbroken, tmp_path):
    result = CliRunner().invoke(main, commands(kind, tmp_path, "accumulate_steps=2"))
    assert result.exit_code == 0, result.output
    lines, expected = metrics_of(kind, unbroken), metrics_of(kind, tmp_path)
    steps = {"pretrain": 4 * (11 // 4), "finetune": 4 * (11 // 4)}[kind]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert abs(lines[0]["loss"] - lines[-1]["loss"]) > 0.01  # weights that do not move would agree too
    names = ["loss", "grad_norm", "lr"]
    # A fine-tuned head's running statistics are those of one process's batches.
    names += ["validation_loss", "linear_eval"] if kind == "pretrain" else []
    for name in names:
        values = [line[name] for line in expected if name in line]
        assert len(values) == {"validation_loss": 4, "linear_eval": 2}.get(name, steps)
        assert [line[name] for line in lines if name in line] == pytest.approx(values, rel=1e-4), name


def test_a_killed_run_ends_as_the_unbroken_one(kind, commands, unbroken, tmp_path):
    command = [*TRAIN_ON_TWO, *commands(kind, tmp_path)]
    kill_when(4, metrics_file(kind, tmp_path), command)
    finish(command)
    whole, killed = weights_of(unbroken), weights_of(tmp_path)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    for name in ("step", "loss", "validation_loss", "validation_score", "linear_eval"):
        assert [line.get(name) for line in metrics_of(kind, tmp_path)] == [
            line.get(name) for line in metrics_of(kind, unbroken)
        ]
    assert "from step 3" in (tmp_path / "train.log").read_text()
