"""Whole pre-training runs through the console script: record, exact resume after a kill, export, refusals."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training import PretrainConfig
from m2d_training.cli.main import main
from m2d_training.pretraining.presets import load_preset
from m2d_training.pretraining.trainer import rate_of_step
from m2d_training.pretraining.weights import start_weights
from m2d_training.runs.loop import Stepper

import m2d_hub
from m2d_hub.config import FrontendConfig
from m2d_hub.nn.frontend import LogMelFrontend

from ..processes import TRAIN, kill_when
from ..signals import write_tones

RATE = 16_000
SIZES = [
    "input_size=80x64",
    "embed_dim=64",
    "depth=2",
    "predictor_dim=64",
    "predictor_depth=1",
    "batch_size=2",
    "warmup_epochs=1",
]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("sounds"), ["train"] * 8 + ["valid", "test"] * 2, samples=RATE)


def arguments(preset, data, out, settings=(), *options):
    changes = [part for setting in [*SIZES, *settings] for part in ("--set", setting)]
    return ["pretrain", preset, "--data", str(data), "--out", str(out), *options, *changes]


def run(*args):
    return CliRunner().invoke(main, arguments(*args))


def metrics_of(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def weights_of(out):
    return start_weights(str(Path(out) / "export"))


def test_run_leaves_config_metrics_plots_checkpoints_and_a_model_that_loads(sounds, tmp_path):
    out = tmp_path / "run"
    settings = ["epochs=2", "analyse_every_steps=4", "linear_eval_every_epochs=2"]
    result = run("m2d-0.7", sounds, out, settings, "--valid", str(sounds), "--labelled", str(sounds))
    assert result.exit_code == 0, result.output
    lines = metrics_of(out)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"loss", "lr", "tau", "grad_norm"} <= lines[0].keys()
    assert {"rank_me", "explained_variance_auc", "validation_loss", "linear_eval"} <= lines[-1].keys()
    assert json.loads((out / "config.json").read_text())["config"]["predictor_dim"] == 64
    assert (out / "plots" / "loss.png").stat().st_size > 1000
    assert (out / "plots" / "schedule.png").exists() and list((out / "tensorboard").iterdir())
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000008.pt"]
    model = m2d_hub.load_model(out / "export", device="cpu")
    assert model.encode_clip(sounds.parent / "0.wav").shape == (1, 5 * 64)


def test_learning_rate_follows_the_global_batch():
    config = PretrainConfig(epochs=3, warmup_epochs=1)
    rates = [rate_of_step(config, step, steps_per_epoch=2, global_batch=4) for step in range(3)]
    peak = 3e-4 * 4 / 256
    assert rates == pytest.approx([0.0, peak / 2, peak])


def test_unknown_presets_are_refused_with_the_known_ones():
    with pytest.raises(m2d_hub.ConfigError, match=r"Unknown preset 'm2d-0.8'. Available: m2d-0.7, m2d-0.6"):
        load_preset("m2d-0.8")


def test_a_folder_of_another_run_is_not_overwritten(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path, ["epochs=1"]).exit_code == 0
    result = run("m2d-0.7", sounds, tmp_path, ["epochs=1", "mask_ratio=0.6"])
    assert result.exit_code == 1
    assert "holds another run: mask_ratio was 0.7, is 0.6" in result.output


@pytest.mark.slow
def test_a_run_may_be_cut_short_until_its_rate_falls(sounds, tmp_path):
    settings = ["decay_epochs=1", "keep_every_epochs=1"]
    assert run("msm-mae-0.75", sounds, tmp_path / "long", [*settings, "epochs=5"]).exit_code == 0
    longer = run("msm-mae-0.75", sounds, tmp_path / "long", [*settings, "epochs=6"])
    assert longer.exit_code == 1 and "epochs was 5, is 6" in longer.output  # its rate has fallen
    for checkpoint in sorted((tmp_path / "long" / "checkpoints").iterdir())[1:]:
        checkpoint.unlink()  # as if it had been stopped after the first epoch
    assert run("msm-mae-0.75", sounds, tmp_path / "long", [*settings, "epochs=2"]).exit_code == 0
    assert run("msm-mae-0.75", sounds, tmp_path / "short", [*settings, "epochs=2"]).exit_code == 0
    long, short = weights_of(tmp_path / "long"), weights_of(tmp_path / "short")
    assert all(torch.equal(long[name], short[name]) for name in short)


@pytest.mark.parametrize(
    ("settings", "noise", "message"),
    [
        (["offline.kind=features"], False, "no teacher was given"),
        ([], True, "noise_ratio is 0: set it"),
        (["base_lr=1e30", "epochs=3", "warmup_epochs=0"], False, "the loss is nan at step"),
        (["in_channels=3"], False, "holds audio files, but in_channels is 3"),
    ],
)
def test_runs_that_cannot_work_end_with_the_reason(sounds, tmp_path, settings, noise, message):
    result = run("m2d-0.7", sounds, tmp_path, settings, *(["--noise", str(sounds)] if noise else []))
    assert result.exit_code == 1 and message in result.output


def test_a_run_starts_from_another_runs_weights(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path / "first", ["epochs=1"]).exit_code == 0
    start = ("--start", str(tmp_path / "first" / "export"))
    assert (
        run("m2d-0.7", sounds, tmp_path / "second", ["epochs=1", "base_lr=0", "seed=1"], *start).exit_code
        == 0
    )
    first, second = weights_of(tmp_path / "first"), weights_of(tmp_path / "second")
    trained = [name for name in first if not name.startswith("target_")]
    assert all(torch.equal(first[name], second[name]) for name in trained)
    assert any(name.startswith("decoder_") for name in trained)


def test_an_autoencoders_weights_start_both_encoders(sounds, tmp_path):
    assert run("msm-mae-0.75", sounds, tmp_path / "first", ["epochs=1"]).exit_code == 0
    settings = ["epochs=1", "base_lr=0", "predictor_dim=32", "start_parts=encoder", "target_start=encoder"]
    options = ("--start", str(tmp_path / "first" / "export"))
    result = run("m2d-0.7", sounds, tmp_path / "second", settings, *options)
    assert result.exit_code == 0, result.output
    first, second = weights_of(tmp_path / "first"), weights_of(tmp_path / "second")
    assert torch.equal(second["blocks.1.mlp.fc1.weight"], first["blocks.1.mlp.fc1.weight"])
    torch.testing.assert_close(second["target_blocks.1.mlp.fc1.weight"], first["blocks.1.mlp.fc1.weight"])


def test_validation_labels_must_be_classes_of_the_training_list(sounds, tmp_path):
    valid = tmp_path / "valid.csv"
    valid.write_text(f"file,label\n{sounds.parent / '0.wav'},c\n")
    result = run("m2d-as", sounds, tmp_path / "run", ["epochs=1"], "--valid", str(valid))
    assert result.exit_code == 1 and "labels that are not classes of this run: ['c']" in result.output


def test_prepared_statistics_standardise_inputs_of_their_rate_alone(sounds, tmp_path):
    shards = tmp_path / "shards"
    assert CliRunner().invoke(main, ["prepare", str(sounds), "--out", str(shards)]).exit_code == 0
    result = run("m2d-0.7-32k", shards, tmp_path / "run", ["epochs=1"])
    assert result.exit_code == 1 and "was prepared at 16000 Hz, but sample_rate is 32000" in result.output
    assert run("m2d-0.7", shards, tmp_path / "run", ["epochs=1"]).exit_code == 0
    stored = json.loads((shards / "statistics.json").read_text())
    expected = [stored["mean"], stored["std"]]
    assert weights_of(tmp_path / "run")["norm_stats"].tolist() == pytest.approx(expected)


def errors_of(out):
    with (out / "errors.csv").open(newline="", encoding="utf-8") as lines:
        return [(row["row"], row["file"], row["error"]) for row in csv.DictReader(lines)]


def list_with_broken(sounds, folder, good, broken):
    """A list of good clips, and others that cannot be read."""
    for index in range(broken):
        (folder / f"broken {index}.wav").write_bytes(b"no audio")
    files = [*(sounds.parent / f"{index}.wav" for index in range(good))]
    files += [folder / f"broken {index}.wav" for index in range(broken)]
    (folder / "list.csv").write_text("file\n" + "".join(f"{file}\n" for file in files))
    return folder / "list.csv"


def test_unreadable_clips_are_skipped_listed_once_and_counted(sounds, tmp_path):
    data, out = list_with_broken(sounds, tmp_path, 3, 1), tmp_path / "run"
    result = run("m2d-0.7", data, out, ["epochs=4", "save_every_steps=2"], "--json")
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["left_out"] == 1
    assert [line["skipped"] for line in metrics_of(out)][-1] == 1
    ((row, file, error),) = errors_of(out)
    assert (row, file) == ("5", str(tmp_path / "broken 0.wav")) and "cannot be read as audio" in error
    assert (out / "train.log").read_text().count("skipped: ") == 1
    (out / "checkpoints" / "step-000000008.pt").unlink()
    assert run("m2d-0.7", data, out, ["epochs=4", "save_every_steps=2"]).exit_code == 3  # resumed
    assert len(errors_of(out)) == 1


def test_missing_files_are_logged_before_the_start(sounds, tmp_path):
    data = list_with_broken(sounds, tmp_path, 3, 2)
    for index in range(2):
        (tmp_path / f"broken {index}.wav").unlink()
    assert run("m2d-0.7", data, tmp_path / "run", ["epochs=4"]).exit_code == 3
    log = (tmp_path / "run" / "train.log").read_text()
    assert "2 files of clips are missing, the first in row 5" in log and "broken 0.wav does not exist" in log
    assert {row for row, _, error in errors_of(tmp_path / "run") if "does not exist" in error} == {"5", "6"}
    data.write_text("file\nnone 1.wav\nnone 2.wav\n" + f"{sounds.parent / '0.wav'}\n")
    result = run("m2d-0.7", data, tmp_path / "other", ["epochs=1", "mean=-7", "std=4"])
    assert result.exit_code == 1 and "2 of 3 clips cannot be read, the first in row 2" in result.output


def test_a_list_of_which_more_than_half_cannot_be_read_ends_the_run(sounds, tmp_path):
    data = list_with_broken(sounds, tmp_path, 3, 4)
    result = run("m2d-0.7", data, tmp_path / "measured", ["epochs=4"])
    assert result.exit_code == 1 and "4 of 7 clips cannot be read, the first in row" in result.output
    result = run("m2d-0.7", data, tmp_path / "given", ["epochs=4", "mean=-7", "std=4"])
    assert result.exit_code == 1 and "4 of 7 clips cannot be read, the first in row" in result.output
    assert len(errors_of(tmp_path / "given")) == 4


def test_statistics_are_measured_where_none_are_given(sounds, tmp_path):
    """Of one crop of each clip: of sounds that do not change, as of their whole spectrograms together."""
    answer = CliRunner().invoke(main, ["statistics", str(sounds), "--frames", "64", "--json"])
    assert answer.exit_code == 0, answer.output
    measured = json.loads(answer.output)
    noise = ["--noise", str(sounds)]
    assert run("m2d-0.7", sounds, tmp_path / "run", ["epochs=1", "noise_ratio=0.2"], *noise).exit_code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    frontend = LogMelFrontend(FrontendConfig())
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(sounds.parent.glob("*.wav"))]
    log_mel = torch.cat([frontend.log_mel(torch.from_numpy(clip)[None]).flatten() for clip in clips])
    assert (config["mean"], config["std"]) == pytest.approx(
        (float(log_mel.mean()), float(log_mel.std())), abs=0.1
    )
    assert (measured["mean"], measured["std"]) == pytest.approx((config["mean"], config["std"]), abs=0.3)
    assert config["noise_mean"] == pytest.approx(config["mean"], abs=0.3)
    assert weights_of(tmp_path / "run")["norm_stats"].tolist() == pytest.approx(
        [config["mean"], config["std"]]
    )
    given = ["epochs=1", "mean=-3.0", "std=2.0"]
    assert run("m2d-0.7", sounds, tmp_path / "given", given).exit_code == 0
    assert weights_of(tmp_path / "given")["norm_stats"].tolist() == [-3.0, 2.0]


def test_a_list_of_silence_is_refused(tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16_000), 16_000)
    result = run("m2d-0.7", tmp_path, tmp_path / "run", ["epochs=1"])
    assert result.exit_code == 1 and "all clips hold one value, such as silence" in result.output


def test_a_frozen_model_teaches_further_pretraining(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path / "first", ["epochs=1"]).exit_code == 0
    export = str(tmp_path / "first" / "export")
    settings = ["epochs=1", "input_size=80x64", "patch_size=16x16", "accumulate_steps=1", "min_list_size=0"]
    options = ("--start", export, "--teacher", export, "--noise", str(sounds))
    result = run("m2d-x-icbhi2017", sounds, tmp_path / "second", settings, *options)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "second" / "config.json").read_text())["config"]
    assert config["offline"]["dim"] == 5 * 64 and config["noise_ratio"] == 0.3


RESUMED = ["epochs=6", "save_every_steps=3", "noise_ratio=0.2", "accumulate_steps=2"]


def require_same_run(whole, resumed, times):
    weights, others = weights_of(whole), weights_of(resumed)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert [line["loss"] for line in metrics_of(whole)] == [line["loss"] for line in metrics_of(resumed)]
    assert (Path(resumed) / "train.log").read_text().count("Resumed from step") == times


class Killed(BaseException):
    """An end that nothing handles."""


def test_a_run_that_dies_in_any_step_ends_with_the_same_weights(sounds, tmp_path, monkeypatch):
    noise, take = ("--noise", str(sounds)), Stepper.step
    assert run("m2d-as", sounds, tmp_path / "whole", RESUMED, *noise).exit_code == 0
    for fatal in (5, 4, 99):  # of twelve steps, saved at 3, 6, ...: step 5, step 7, none
        steps = []

        def dying(self, *batches, steps=steps, fatal=fatal):
            steps.append(take(self, *batches))
            if len(steps) == fatal:
                raise Killed
            return steps[-1]

        monkeypatch.setattr(Stepper, "step", dying)
        with pytest.raises(Killed) if fatal < 99 else contextlib.nullcontext():
            assert run("m2d-as", sounds, tmp_path / "killed", RESUMED, *noise).exit_code == 0
        (tmp_path / "killed" / "checkpoints" / "step-000000099.pt.partial").write_bytes(b"cut off")
    require_same_run(tmp_path / "whole", tmp_path / "killed", times=2)


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_same_weights(sounds, tmp_path):
    settings, noise = [*RESUMED, "num_workers=2"], ("--noise", str(sounds))
    assert run("m2d-as", sounds, tmp_path / "whole", settings, *noise).exit_code == 0
    out = tmp_path / "killed"
    for lines in (4, 7, 10):
        kill_when(lines, out / "metrics.jsonl", [*TRAIN, *arguments("m2d-as", sounds, out, settings, *noise)])
    assert run("m2d-as", sounds, out, settings, *noise).exit_code == 0
    require_same_run(tmp_path / "whole", out, times=3)


def test_a_float16_run_is_resumed_bit_for_bit_and_with_its_loss_scale(sounds, tmp_path):
    settings = ["epochs=2", "save_every_steps=4", "precision=fp16"]
    last = tmp_path / "checkpoints" / "step-000000008.pt"
    found = []
    for _ in range(2):
        assert run("m2d-0.7", sounds, tmp_path, settings).exit_code == 0
        found.append((weights_of(tmp_path), torch.load(last)["loss_scale"]))
        last.unlink()
    assert (tmp_path / "train.log").read_text().count("Resumed from step 4") == 1
    (whole, scale), (resumed, resumed_scale) = found
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert scale == resumed_scale and scale["_growth_tracker"] == 8


def test_label_free_checks_see_all_patches_of_the_same_clips(sounds, tmp_path):
    # The rate is 0 at the first step: the weights are those of the seed, whatever is masked.
    found, data = [], tmp_path / "list.csv"
    data.write_text("".join(f"{line}\n" for line in ["file", *sorted(sounds.parent.glob("*.wav"))]))
    for ratio in ("0.5", "0.8"):
        settings = ["epochs=1", f"mask_ratio={ratio}", "analyse_every_steps=1"]
        assert run("m2d-0.7", data, tmp_path / ratio, settings, "--valid", str(data)).exit_code == 0
        found.append(metrics_of(tmp_path / ratio)[0])
    for name in ("rank_me", "explained_variance_auc"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-9)
        assert found[0][name] == found[0][f"validation_{name}"]  # the lists are the same
    assert 1 < found[0]["rank_me"] < 64
