"""The outer loop that pre-training and fine-tuning share: steps that are not finite, stops, locks, logs."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main
from m2d_training.cli.options import logging_to
from m2d_training.finetuning.trainer import FinetuneTrainer
from m2d_training.pretraining.trainer import Trainer
from m2d_training.runs.devices import build_accelerator
from m2d_training.runs.folder import RunFolder
from m2d_training.runs.optimization import Stepper
from m2d_training.runs.state import list_checkpoints, read_state, write_tensors
from m2d_training.runs.stopping import read_by_workers
from torch import nn
from torch.utils.data import Dataset

import m2d_hub
from m2d_hub.io import replacing, replacing_folder

from ..processes import ONE_THREAD, TRAIN, TRAIN_ON_TWO, finish, wait_for_lines

pytestmark = pytest.mark.usefixtures("no_pictures")

RATE = 16_000
SMALL = (
    "input_size=80x64 embed_dim=64 depth=2 predictor_dim=64 predictor_depth=1 batch_size=2 warmup_epochs=0"
)
QUICK = "min_steps=0 batch_size=4 try_linear=false"
KINDS = ["pretrain", "finetune"]


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
def test_a_skipped_step_changes_neither_weights_nor_running_statistics(value):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    stepper = Stepper(build_accelerator(), network, optimizer, clip_norm=1.0, precision="fp32")
    for inputs in (torch.randn(4, 3), torch.full((4, 3), value)):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        step = stepper.step([inputs], lambda batch: network(batch).square().sum()[None])
        assert step.is_taken == bool(inputs.isfinite().all())
        after = network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) != step.is_taken
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
    assert state["step"] == 3  # that of step 4, whose weights gave no finite step, is set aside
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


def start(arguments):
    """The command in a process of its own, its output in a pipe."""
    return subprocess.Popen(
        [*TRAIN, *arguments], env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops_with_one_line(command, tmp_path, kind, number, status):
    settings = ["epochs=500", "save_every_steps=100000", "num_workers=2"]
    with start(command(kind, tmp_path, *settings)) as child:
        wait_for_lines(3, members_of(kind, tmp_path).metrics_file, child)
        os.killpg(child.pid, number)  # as a terminal or a scheduler does: loaders get it too
        _, told = child.communicate(timeout=60)
    assert child.returncode == status
    assert "Traceback" not in told and told.count(f"Stopped by {number.name} after step") == 1
    (checkpoint,) = list_checkpoints(members_of(kind, tmp_path))
    assert read_state(checkpoint)["step"] == metrics_of(kind, tmp_path)[-1]["step"] >= 3
    assert f"Stopped by {number.name}" in (tmp_path / "train.log").read_text()


def test_a_stopped_run_ends_with_the_same_weights(command, tmp_path):
    settings = ["epochs=6", "save_every_steps=100000"]
    with start(command("pretrain", tmp_path / "stopped", *settings)) as child:
        wait_for_lines(3, tmp_path / "stopped" / "metrics.jsonl", child)
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)
    for out in ("whole", "stopped"):
        assert run(command("pretrain", tmp_path / out, *settings)).exit_code == 0
    whole, stopped = (
        m2d_hub.load_model(tmp_path / out / "export", device="cpu").state_dict()
        for out in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def linear_command(model, sounds, out):
    return ["linear-eval", "--model", str(model), "--data", str(sounds), "--out", str(out), "--seeds", "1"]


@pytest.mark.parametrize("kind", [*KINDS, "linear-eval"])
def test_a_folder_that_another_run_works_in_is_refused(command, model, sounds, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("m2d_training.runs.folder.LOCK_WAIT_S", 0.1)
    holds = f"lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); print(1, flush=True)"
    other = [sys.executable, "-c", f"import filelock, time; {holds}; time.sleep(100)"]
    with subprocess.Popen(other, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        arguments = (
            linear_command(model, sounds, tmp_path) if kind == "linear-eval" else command(kind, tmp_path)
        )
        result = run(arguments)
        child.kill()
    assert result.exit_code == 1 and f"another run works in {tmp_path}" in result.output
    log = tmp_path / ("eval.log" if kind == "linear-eval" else "train.log")
    assert "ERROR Ended: another run works in" in log.read_text()


@pytest.mark.parametrize("kind", [*KINDS, "linear-eval"])
def test_an_out_that_is_a_file_is_refused_in_a_line(command, model, sounds, tmp_path, kind):
    out = tmp_path / "file"
    out.write_text("mine")
    result = run(linear_command(model, sounds, out) if kind == "linear-eval" else command(kind, out))
    assert result.exit_code == 1 and "--out must be a folder, but" in result.output.replace(
        " out ", " --out "
    )
    assert out.read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_job_gets_lines_and_no_bar(command, tmp_path, kind):
    with start(command(kind, tmp_path, "epochs=2")) as child:
        _, told = child.communicate(timeout=120)
    assert child.returncode == 0 and "\r" not in told and "it/s" not in told
    lines = [line for line in (tmp_path / "train.log").read_text().splitlines() if " of " in line]
    assert any("step 1 of" in line and "loss" in line for line in lines)


@pytest.mark.parametrize(
    "damage", [b"", b"version https://git-lfs.github.com/spec/v1\n", "cut"], ids=["empty", "pointer", "cut"]
)
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path, damage):
    path = tmp_path / "step-000000001.pt"
    write_tensors(path, {"step": 1, "model": {"weight": torch.zeros(100_000)}, "optimizer": {}})
    path.write_bytes(path.read_bytes()[:9000] if damage == "cut" else damage)
    with pytest.raises(
        m2d_hub.CheckpointError, match=r"step-000000001.pt cannot be read as .+ \(.+\). Delete it to resume"
    ):
        read_state(path)


@pytest.mark.parametrize("text", ["", '{"config": {', "[]", '{"config": 3}'])
def test_a_damaged_config_is_named_with_the_way_out(command, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    result = run(command("pretrain", tmp_path, "epochs=1"))
    assert result.exit_code == 1 and "config.json cannot be read as a run's configuration" in result.output


@pytest.mark.parametrize("write", [replacing, replacing_folder])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("16896 requested and 2016 written"),
    ],
    ids=["torch", "system", "quota", "numpy"],
)
def test_a_full_disk_is_named_whatever_the_library_says(tmp_path, monkeypatch, write, error):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr("m2d_hub.io.shutil.disk_usage", lambda folder: usage(3 << 20, 3 << 20, 0))
    with pytest.raises(OSError, match=f"no space left on the disk of {tmp_path}"), write(tmp_path / "file"):
        raise error
    assert not list(tmp_path.iterdir())


def changed_list(sounds, path, change):
    """The list, a row of it changed, beside links to its clips."""
    path.parent.mkdir(exist_ok=True)
    for clip in sounds.parent.glob("*.wav"):
        (path.parent / clip.name).symlink_to(clip)
    with sounds.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([header, *change(rows)])
    return path


def renamed_label(rows):
    return [[rows[0][0], "b", rows[0][2]], *rows[1:]]


def reversed_rows(rows):
    return rows[::-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [renamed_label, reversed_rows])
def test_a_run_is_not_resumed_with_other_clips(command, sounds, tmp_path, kind, change):
    assert run(command(kind, tmp_path / "run", "epochs=1")).exit_code == 0
    data = changed_list(sounds, tmp_path / "other" / "list.csv", change)
    result = run(command(kind, tmp_path / "run", "epochs=1", data=data))
    assert result.exit_code == 1 and "holds another run: data_hash was" in result.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_its_data_have_moved(command, sounds, tmp_path, kind):
    assert run(command(kind, tmp_path / "run", "epochs=1")).exit_code == 0
    data = changed_list(sounds, tmp_path / "moved" / "renamed.csv", list)
    assert run(command(kind, tmp_path / "run", "epochs=1", data=data)).exit_code == 0


def test_a_run_does_not_go_on_with_other_noise(command, sounds, tmp_path):
    other = changed_list(sounds, tmp_path / "other" / "list.csv", reversed_rows)
    for noise, status in ((sounds, 0), (other, 1)):
        arguments = command(
            "pretrain", tmp_path / "run", "epochs=1", "noise_ratio=0.2", options=("--noise", str(noise))
        )
        result = run(arguments)
        assert result.exit_code == status
    assert "noise_hash was" in result.output


def test_a_run_goes_on_without_the_weights_that_it_started_from(command, tmp_path):
    assert run(command("pretrain", tmp_path / "first", "epochs=1")).exit_code == 0
    start = ("--start", str(tmp_path / "first" / "export"))
    assert run(command("pretrain", tmp_path / "run", "epochs=1", options=start)).exit_code == 0
    shutil.rmtree(tmp_path / "first")
    for options in (start, ()):
        result = run(command("pretrain", tmp_path / "run", "epochs=1", options=options))
        assert result.exit_code == 0, result.output


def test_the_validation_loss_does_not_depend_on_the_batch_size(command, sounds, tmp_path):
    losses = []
    for size in (1, 2, 4):  # sixteen clips a step, of which none teaches anything
        settings = ["epochs=1", "base_lr=0", f"batch_size={size}", f"accumulate_steps={16 // size}"]
        arguments = command("pretrain", tmp_path / str(size), *settings, options=("--valid", str(sounds)))
        assert run(arguments).exit_code == 0
        losses.append(metrics_of("pretrain", tmp_path / str(size))[-1]["validation_loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


@pytest.mark.parametrize("figure", ["validation_loss", "linear_eval"])
def test_what_cannot_be_measured_does_not_end_a_run(command, sounds, tmp_path, figure):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows = [f"broken.wav,{label},{split}" for split in ("train", "valid", "test") for label in "ab"]
    data = tmp_path / "list.csv"
    data.write_text("\n".join(["file,label,split", *rows]) + "\n")
    option = "--valid" if figure == "validation_loss" else "--labelled"
    result = run(command("pretrain", tmp_path / "run", "epochs=1", options=(option, str(data))))
    assert result.exit_code == 0, result.output
    assert figure not in metrics_of("pretrain", tmp_path / "run")[-1]
    assert f"{figure} could not be measured" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.multi_process
def test_two_processes_validate_lists_of_any_length_as_one_does(command, sounds, tmp_path):
    """An uneven last group, a contrastive loss, and a linear evaluation, which is the first one's alone."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(16):
        np.save(tmp_path / f"{index}.npy", rng.standard_normal(8).astype(np.float32))
        rows.append(f"{sounds.parent / f'{index}.wav'},caption {index},{index}.npy")
    for name, count in (("train", 16), ("valid", 7)):
        text = "\n".join(["file,caption,features", *rows[:count]]) + "\n"
        (tmp_path / f"{name}.csv").write_text(text)
    options = ("--valid", str(tmp_path / "valid.csv"), "--labelled", str(sounds))
    settings = ["batch_size=2", "linear_eval_every_epochs=1", "offline.kind=text", "offline.text_dim=8"]
    losses = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        arguments = command(
            "pretrain", out, *settings, "epochs=1", "base_lr=0", f"accumulate_steps={2 // processes}",
            options=options, data=tmp_path / "train.csv",
        )  # fmt: skip
        finish([*(TRAIN if processes == 1 else TRAIN_ON_TWO), *arguments])
        last = metrics_of("pretrain", out)[-1]
        assert 0 <= last["linear_eval"] <= 1
        losses.append(last["validation_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_stop_together(command, tmp_path, kind):
    arguments = command(kind, tmp_path, "epochs=500", "save_every_steps=100000")
    with subprocess.Popen([*TRAIN_ON_TWO, *arguments], env=ONE_THREAD, stderr=subprocess.DEVNULL) as child:
        wait_for_lines(3, members_of(kind, tmp_path).metrics_file, child)
        child.send_signal(signal.SIGTERM)  # the launcher passes it on
        child.wait(timeout=100)
    (checkpoint,) = list_checkpoints(members_of(kind, tmp_path))
    assert read_state(checkpoint)["step"] == metrics_of(kind, tmp_path)[-1]["step"]
    assert "Stopped by SIGTERM after step" in (tmp_path / "train.log").read_text()


def test_a_log_on_a_full_disk_neither_hides_the_error_nor_adds_to_it(tmp_path, monkeypatch, capsys):
    def write(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(m2d_hub.ConfigError, match="the real one"), logging_to(tmp_path / "train.log"):
        monkeypatch.setattr(logging.FileHandler, "flush", write)
        raise m2d_hub.ConfigError("the real one")
    monkeypatch.undo()
    assert "Traceback" not in capsys.readouterr().err


class Squares(Dataset):
    """Numbers, of which one ends its reader where that is asked for."""

    def __init__(self, deadly=None):
        self.deadly = deadly

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index**2)


ENDS_BY_AN_ERROR = """
import sys, torch
from m2d_training.runs.stopping import read_by_workers
batches = read_by_workers(torch.arange(40), 2, batch_size=2)
next(batches)
raise ValueError("the traceback keeps the batches alive")
"""


def test_a_process_that_fails_while_workers_read_ends():
    answer = subprocess.run(
        [sys.executable, "-c", ENDS_BY_AN_ERROR], env=ONE_THREAD, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 1 and "keeps the batches alive" in answer.stderr


def test_a_killed_worker_is_an_error_of_this_package():
    with pytest.raises(m2d_hub.M2DError, match="a worker that reads clips was killed, probably for lack of"):
        list(read_by_workers(Squares(deadly=9), 2, batch_size=2))


def test_full_shared_memory_is_named_instead_of_waited_for(monkeypatch):
    def refuse(self):
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(m2d_hub.M2DError, match=r"shared memory is full: 2 workers.*smaller num_workers"):
        list(read_by_workers(Squares(), 2, batch_size=2))
