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

import pytest
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main
from m2d_training.cli.options import logging_to
from m2d_training.finetuning.trainer import FinetuneTrainer
from m2d_training.pretraining.trainer import Trainer
from m2d_training.runs.folder import RunFolder, progress_bar
from m2d_training.runs.loop import Stepper
from m2d_training.runs.processes import build_accelerator, read_by_workers, stop_requests
from m2d_training.runs.state import list_checkpoints, read_state, write_tensors
from torch import nn
from torch.utils.data import Dataset

import m2d_hub

from ..processes import ONE_THREAD, TRAIN, TRAIN_ON_TWO, wait_for_lines
from ..signals import write_tones

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
    return write_tones(tmp_path_factory.mktemp("sounds"), ["train"] * 8 + ["valid"] * 4 + ["test"] * 4)


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


@pytest.mark.parametrize(
    ("kind", "step", "factor"), [("pretrain", 2, float("inf")), ("finetune", 4, float("nan"))]
)
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(
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
def test_several_skipped_steps_in_a_row_end_the_run_and_keep_the_last_checkpoint(
    command, tmp_path, monkeypatch, kind
):
    settings = [f"epochs={3 if kind == 'pretrain' else 6}", "save_every_steps=1"]  # twelve steps
    with monkeypatch.context() as patch:
        break_steps(patch, {5, 6, 7}, float("inf"))
        result = run(command(kind, tmp_path, *settings))
    assert result.exit_code == 1 and "the gradient norm is nan at step 7, the last of 3" in result.output
    state = read_state(list_checkpoints(members_of(kind, tmp_path))[-1])
    assert state["step"] == 3  # that of step 4, whose weights gave no finite step, is set aside
    assert "it is set aside as step-000000004.pt.suspect" in result.output
    again = run(command(kind, tmp_path, *settings))
    assert again.exit_code == 0, again.output
    assert [line["step"] for line in metrics_of(kind, tmp_path)] == list(range(1, 13))


def test_weights_that_blew_up_are_not_resumed_from(command, tmp_path):
    result = run(command("pretrain", tmp_path, "base_lr=1e30", "epochs=3", "save_every_steps=1"))
    assert result.exit_code == 1, result.output
    assert not list_checkpoints(RunFolder(tmp_path))
    assert not (tmp_path / "export").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sounds):
    """Folder of a pre-training of one epoch."""
    out = tmp_path_factory.mktemp("finished")
    settings = [part for setting in [*SMALL.split(), "epochs=1"] for part in ("--set", setting)]
    result = run(["pretrain", "m2d-0.7", "--data", str(sounds), "--out", str(out), *settings])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_and_stops_with_one_line(command, tmp_path):
    settings = ["epochs=500", "save_every_steps=100000", "num_workers=2"]
    started = [*TRAIN, *command("pretrain", tmp_path, *settings)]
    with subprocess.Popen(
        started, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        wait_for_lines(3, tmp_path / "metrics.jsonl", child)
        os.killpg(child.pid, signal.SIGTERM)  # as a scheduler does: workers get it too
        _, output = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "Traceback" not in output and output.count("Stopped by SIGTERM after step") == 1
    require_saved_at_the_end("pretrain", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_in_a_step_saves_and_stops_with_the_status_of_the_signal(
    command, tmp_path, monkeypatch, kind
):
    take = Stepper.step

    def signalled(self, *args):
        signal.raise_signal(signal.SIGTERM)  # SIGINT is ignored where pytest runs in the background
        return take(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", signalled)
        assert run(command(kind, tmp_path, "epochs=500", "save_every_steps=100000")).exit_code == 143
    require_saved_at_the_end(kind, tmp_path)
    assert "Stopped by SIGTERM after step 1" in (tmp_path / "train.log").read_text()


def test_an_ignored_signal_stays_ignored():
    """A shell ignores SIGINT for its background jobs, so that Ctrl-C does not end them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as requests, requests.held():
            signal.raise_signal(signal.SIGINT)
            assert requests.agreed(build_accelerator()) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def require_saved_at_the_end(kind, out):
    (checkpoint,) = list_checkpoints(members_of(kind, out))
    assert read_state(checkpoint)["step"] == metrics_of(kind, out)[-1]["step"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_another_run_works_in_is_refused(command, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("m2d_training.runs.folder.LOCK_WAIT_S", 0.1)
    holds = f"lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); print(1, flush=True)"
    other = [sys.executable, "-c", f"import filelock, time; {holds}; time.sleep(100)"]
    with subprocess.Popen(other, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        result = run(command(kind, tmp_path))
        child.kill()
    assert result.exit_code == 1 and f"another run is writing {tmp_path}" in result.output
    assert "ERROR Ended: another run is writing" in (tmp_path / "train.log").read_text()


def test_an_out_that_is_a_file_is_refused(command, tmp_path):
    out = tmp_path / "file"
    out.write_text("mine")
    result = run(command("pretrain", out))
    assert result.exit_code == 1 and "out must be a folder, but" in result.output
    assert out.read_text() == "mine"


@pytest.mark.parametrize("is_logged", [True, False])
def test_progress_is_lines_where_there_is_no_terminal(capsys, caplog, is_logged):
    caplog.set_level(logging.INFO if is_logged else logging.WARNING, "m2d_training")
    with progress_bar("fold 1", 0, 4, "step", is_shown=True) as bar:
        for _ in range(4):
            bar.set_postfix_str("loss 0.5", refresh=False)
            bar.update()
    lines = caplog.messages if is_logged else capsys.readouterr().err.splitlines()
    assert lines[0].startswith("fold 1: step 0 of 4, ")
    assert lines[-1].startswith("fold 1: step 4 of 4, loss 0.5, ")


def without_optimizer_state(state):
    return {**state, "optimizer": {**state["optimizer"], "state": {}}}


def of_another_step(state):
    return {**state, "step": 10**12}


def with_infinity(state):
    state["optimizer"]["state"]["encoder.norm.weight"]["exp_avg"][0] = torch.inf
    return state


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_optimizer_state, "it lacks optimizer state of"),
        (of_another_step, "it is of step 1000000000000"),
        (with_infinity, "is not finite: optimizer.state.encoder.norm.weight.exp_avg"),
        (bytes, "tensors and plain values"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_a_hint(command, tmp_path, finished, damage, message):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (path,) = list_checkpoints(RunFolder(tmp_path))
    if damage is bytes:
        path.write_bytes(path.read_bytes()[:9000])
    else:
        write_tensors(path, damage(torch.load(path)))
    result = run(command("pretrain", tmp_path, "epochs=1"))
    assert result.exit_code == 1 and message in result.output and "Delete it to resume" in result.output


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


@pytest.mark.parametrize(("kind", "change"), [("pretrain", renamed_label), ("finetune", reversed_rows)])
def test_a_run_is_not_resumed_with_other_clips(command, sounds, tmp_path, kind, change):
    assert run(command(kind, tmp_path / "run", "epochs=1")).exit_code == 0
    data = changed_list(sounds, tmp_path / "other" / "list.csv", change)
    result = run(command(kind, tmp_path / "run", "epochs=1", data=data))
    assert result.exit_code == 1 and "holds another run: data_hash was" in result.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_resumed_after_its_data_were_moved(command, sounds, tmp_path, kind):
    assert run(command(kind, tmp_path / "run", "epochs=1")).exit_code == 0
    data = changed_list(sounds, tmp_path / "moved" / "renamed.csv", list)
    assert run(command(kind, tmp_path / "run", "epochs=1", data=data)).exit_code == 0


def test_a_run_is_resumed_without_its_start_weights(command, tmp_path):
    assert run(command("pretrain", tmp_path / "first", "epochs=1")).exit_code == 0
    start = ("--start", str(tmp_path / "first" / "export"))
    assert run(command("pretrain", tmp_path / "run", "epochs=1", options=start)).exit_code == 0
    shutil.rmtree(tmp_path / "first")
    for options in (start, ()):
        result = run(command("pretrain", tmp_path / "run", "epochs=1", options=options))
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("figure", ["validation_loss", "linear_eval"])
def test_a_failed_measurement_does_not_end_a_run(command, sounds, tmp_path, figure):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows = [f"broken.wav,{label},{split}" for split in ("train", "valid", "test") for label in "ab"]
    data = tmp_path / "list.csv"
    data.write_text("\n".join(["file,label,split", *rows]) + "\n")
    option = "--valid" if figure == "validation_loss" else "--labelled"
    result = run(command("pretrain", tmp_path / "run", "epochs=1", options=(option, str(data))))
    assert result.exit_code == 0, result.output
    assert figure not in metrics_of("pretrain", tmp_path / "run")[-1]
    assert f"{figure} could not be measured" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.multi_process
def test_two_processes_stop_together(command, tmp_path):
    arguments = command("pretrain", tmp_path, "epochs=500", "save_every_steps=100000")
    with subprocess.Popen([*TRAIN_ON_TWO, *arguments], env=ONE_THREAD, stderr=subprocess.DEVNULL) as child:
        wait_for_lines(3, tmp_path / "metrics.jsonl", child)
        child.send_signal(signal.SIGTERM)  # the launcher passes it on
        child.wait(timeout=100)
    require_saved_at_the_end("pretrain", tmp_path)
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
from m2d_training.runs.processes import read_by_workers
batches = read_by_workers(torch.arange(40), 2, batch_size=2)
next(batches)
raise ValueError("the traceback keeps the batches alive")
"""


@pytest.mark.slow
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
