"""The outer loop that pre-training and fine-tuning share: steps that are not finite, stops, locks, logs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main
from m2d_training.finetuning.loop import FinetuneTrainer
from m2d_training.pretraining.loop import Trainer
from m2d_training.runs.devices import build_accelerator
from m2d_training.runs.folder import RunFolder
from m2d_training.runs.state import list_checkpoints, read_state, write_tensors
from m2d_training.runs.updates import Updater
from torch import nn

import m2d_hub

RATE = 16_000
SMALL = (
    "input_size=80x64 embed_dim=64 depth=2 predictor_dim=64 predictor_depth=1 batch_size=4 warmup_epochs=0"
)
QUICK = "min_steps=0 batch_size=4 try_linear=false"
KINDS = ["pretrain", "finetune"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longest, and are tested elsewhere."""
    monkeypatch.setattr("m2d_training.evaluation.charts._save", lambda *_: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_config):
    """Folder of a tiny model with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    m2d_hub.M2D(tiny_config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A list of 16 short tones: 8 to train on, 4 valid, 4 test."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(16):
        tone = 0.2 * np.sin(np.arange(8000 + 500 * index) * 0.05 * (1 + index % 2))
        soundfile.write(folder / f"{index}.wav", tone + 0.02 * rng.standard_normal(len(tone)), RATE)
        rows.append([f"{index}.wav", "ab"[index % 2], ("train", "train", "valid", "test")[index // 4]])
    with (folder / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return folder / "list.csv"


@pytest.fixture
def command(sounds, model):
    """Arguments of a run of a kind; pre-training has 4 steps an epoch, fine-tuning 2."""

    def arguments(kind, out, *settings, options=(), data=sounds):
        preset = ["m2d-0.7"] if kind == "pretrain" else ["small", "--model", str(model)]
        fixed = (SMALL if kind == "pretrain" else QUICK).split()
        changes = [part for setting in [*fixed, *settings] for part in ("--set", setting)]
        return [kind, *preset, "--data", str(data), "--out", str(out), *options, *changes]

    return arguments


def run(arguments):
    return CliRunner().invoke(main, arguments)


def members_of(kind, out):
    """Folder with the checkpoints and metrics of the one training of a run."""
    return RunFolder(Path(out) if kind == "pretrain" else Path(out) / "trainings" / "test-seed-42")


def metrics_of(kind, out):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    lines = members_of(kind, out).metrics_file.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def break_steps(monkeypatch, steps, factor):
    """Multiplies the loss's gradient in forward passes number ``steps``, counted from 1; the loss stays."""
    count = 0

    def broken(loss):
        nonlocal count
        count += 1
        if count in steps:
            loss.register_hook(lambda gradient: gradient * factor)

    forward, loss_of = Trainer.forward, FinetuneTrainer._loss

    def pretrain_forward(self, batch):
        terms = forward(self, batch)
        broken(terms.total)
        return terms

    def finetune_loss(self, batch):
        loss = loss_of(self, batch)
        broken(loss)
        return loss

    monkeypatch.setattr(Trainer, "forward", pretrain_forward)
    monkeypatch.setattr(FinetuneTrainer, "_loss", finetune_loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("step", "factor"), [(2, float("inf")), (4, float("nan"))])
def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(
    command, tmp_path, monkeypatch, kind, step, factor
):
    break_steps(monkeypatch, {step}, factor)
    epochs = {"pretrain": 1, "finetune": 2}[kind]  # four steps
    result = run(command(kind, tmp_path, f"epochs={epochs}", "save_every_steps=1"))
    assert result.exit_code == 0, result.output
    assert [line["steps_left_out"] for line in metrics_of(kind, tmp_path)] == [0] * (step - 1) + [1] * (
        5 - step
    )
    exported = m2d_hub.load_model(tmp_path / "export", device="cpu")
    assert all(tensor.isfinite().all() for tensor in exported.state_dict().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_left_out_changes_neither_weights_nor_running_statistics(value):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    updater = Updater(build_accelerator(), network, optimizer, clip_norm=1.0)
    for inputs in (torch.randn(4, 3), torch.full((4, 3), value)):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        updater.begin()
        loss = network(inputs).square().sum()
        loss.backward()
        is_finite = bool(inputs.isfinite().all())
        assert updater.finish(float(loss.detach())).is_taken == is_finite
        after = network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) != is_finite
        assert int(optimizer.state[network[0].weight]["step"]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_several_such_steps_in_a_row_end_the_run_with_the_last_checkpoint_kept(
    command, tmp_path, monkeypatch, kind
):
    settings = [f"epochs={3 if kind == 'pretrain' else 6}", "save_every_steps=1"]  # twelve steps
    with monkeypatch.context() as patch:
        break_steps(patch, {5, 6, 7}, float("inf"))
        result = run(command(kind, tmp_path, *settings))
    assert result.exit_code == 1 and "the gradient norm is nan at step 7, the last of 3" in result.output
    state = read_state(list_checkpoints(members_of(kind, tmp_path))[-1])
    assert state.step == 3  # that of step 4, whose weights gave no finite step, is set aside
    assert "its checkpoint is set aside as" in result.output
    again = run(command(kind, tmp_path, *settings))
    assert again.exit_code == 0, again.output
    assert [line["step"] for line in metrics_of(kind, tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("pretrain", ["base_lr=1e30", "epochs=3"]), ("finetune", ["lr=1e30", "warmup_epochs=0", "epochs=6"])],
)
def test_weights_that_blew_up_are_not_resumed_from(command, tmp_path, kind, settings):
    result = run(command(kind, tmp_path, *settings, "save_every_steps=1"))
    assert result.exit_code == 1, result.output
    assert not list_checkpoints(members_of(kind, tmp_path))
    assert not (tmp_path / "export").exists()


def test_a_checkpoint_with_values_that_are_not_finite_is_refused(command, tmp_path):
    assert run(command("pretrain", tmp_path, "epochs=1")).exit_code == 0
    (path,) = list_checkpoints(RunFolder(tmp_path))
    values = torch.load(path)
    values["optimizer"]["state"]["encoder.norm.weight"]["exp_avg"][0] = torch.nan
    write_tensors(path, values)
    result = run(command("pretrain", tmp_path, "epochs=1"))
    assert result.exit_code == 1
    assert "is not finite: optimizer.state.encoder.norm.weight.exp_avg. Delete it" in result.output
