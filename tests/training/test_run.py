"""Whole pre-training runs through the console script: record, exact resume after a kill, export, refusals."""

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
from m2d_training.pretraining.weights import start_weights

import m2d_hub
from m2d_hub.config import FrontendConfig
from m2d_hub.nn.frontend import LogMelFrontend

from ..processes import TRAIN, kill_when

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
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    rows = []
    for index, split in enumerate(["train"] * 8 + ["valid", "test"] * 2):
        tone = 0.2 * np.sin(np.arange(RATE + 1000 * index) * 0.05 * (index + 1))
        soundfile.write(folder / f"{index}.wav", tone + 0.02 * rng.standard_normal(len(tone)), RATE)
        rows.append([f"{index}.wav", "ab"[index % 2], split])
    with (folder / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return folder / "list.csv"


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


def test_learning_rate_follows_the_global_batch(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path, ["epochs=3", "accumulate_steps=2"]).exit_code == 0
    rates = [line["lr"] for line in metrics_of(tmp_path)]
    peak = 3e-4 * 4 / 256  # two clips, accumulated twice
    assert rates[:3] == pytest.approx([0.0, peak / 2, peak])


def test_set_changes_fields_of_the_preset_and_of_its_offline_network(sounds, tmp_path):
    settings = ["epochs=1", "offline.weight=0.5", "mask_ratio=0.5"]
    assert run("m2d-as", sounds, tmp_path, settings).exit_code == 0
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (config["mask_ratio"], config["offline"]["weight"], config["offline"]["dim"]) == (0.5, 0.5, 2)
    (first, *_) = metrics_of(tmp_path)
    assert first["loss"] == pytest.approx(first["m2d"] + 0.5 * first["offline"], rel=1e-5)


def test_a_warm_up_longer_than_the_run_is_told(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path, ["epochs=1", "warmup_epochs=20"]).exit_code == 0
    assert "warmup_epochs is 20, but the training has 1 epochs" in (tmp_path / "train.log").read_text()


def test_unknown_presets_are_refused_with_the_known_ones(sounds, tmp_path):
    result = run("m2d-0.8", sounds, tmp_path)
    assert result.exit_code == 1 and "Unknown preset 'm2d-0.8'. Available: m2d-0.7, m2d-0.6" in result.output


def test_a_folder_of_another_run_is_not_overwritten(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path, ["epochs=1"]).exit_code == 0
    result = run("m2d-0.7", sounds, tmp_path, ["epochs=1", "mask_ratio=0.6"])
    assert result.exit_code == 1
    assert "holds another run: mask_ratio was 0.7, is 0.6" in result.output


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


def test_a_teacher_is_asked_for_where_features_are_learnt(sounds, tmp_path):
    result = run("m2d-0.7", sounds, tmp_path, ["offline.kind=features"])
    assert result.exit_code == 1 and "no teacher was given" in result.output


def test_noise_without_a_ratio_is_refused(sounds, tmp_path):
    result = run("m2d-0.7", sounds, tmp_path, [], "--noise", str(sounds))
    assert result.exit_code == 1 and "noise_ratio is 0: set it" in result.output


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
    assert result.exit_code == 1 and "labels that are no classes of this run: ['c']" in result.output


def test_shards_of_another_rate_are_refused(sounds, tmp_path):
    shards = str(tmp_path / "shards")
    assert CliRunner().invoke(main, ["prepare", str(sounds), "--out", shards]).exit_code == 0
    result = run("m2d-0.7-32k", shards, tmp_path / "run", ["epochs=1"])
    assert result.exit_code == 1 and "was prepared at 16000 Hz, but sample_rate is 32000" in result.output


def test_inputs_are_standardised_by_the_prepared_statistics(sounds, tmp_path):
    shards = tmp_path / "shards"
    assert CliRunner().invoke(main, ["prepare", str(sounds), "--out", str(shards)]).exit_code == 0
    assert run("m2d-0.7", shards, tmp_path / "run", ["epochs=1"]).exit_code == 0
    stored = json.loads((shards / "statistics.json").read_text())
    assert weights_of(tmp_path / "run")["norm_stats"].tolist() == pytest.approx(
        [stored["mean"], stored["std"]]
    )


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


def test_clips_that_cannot_be_read_are_left_out_named_once_and_counted(sounds, tmp_path):
    data, out = list_with_broken(sounds, tmp_path, 3, 1), tmp_path / "run"
    result = run("m2d-0.7", data, out, ["epochs=4", "save_every_steps=2"], "--json")
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["left_out"] == 1
    assert [line["skipped"] for line in metrics_of(out)][-1] == 1
    ((row, file, error),) = errors_of(out)
    assert (row, file) == ("5", str(tmp_path / "broken 0.wav")) and "cannot be read as audio" in error
    assert (out / "train.log").read_text().count("skipped: ") == 1
    (out / "checkpoints" / "step-000000008.pt").unlink()
    assert run("m2d-0.7", data, out, ["epochs=4", "save_every_steps=2"]).exit_code == 3  # goes on
    assert len(errors_of(out)) == 1


def test_files_that_are_missing_are_told_before_the_start(sounds, tmp_path):
    data = list_with_broken(sounds, tmp_path, 3, 2)
    for index in range(2):
        (tmp_path / f"broken {index}.wav").unlink()
    assert run("m2d-0.7", data, tmp_path / "run", ["epochs=4"]).exit_code == 3
    told = (tmp_path / "run" / "train.log").read_text()
    assert "2 of 5 clips lack a file, the first in row 5: " in told and "broken 0.wav does not exist" in told
    assert {row for row, _, error in errors_of(tmp_path / "run") if "does not exist" in error} == {"5", "6"}
    data.write_text("file\nnone 1.wav\nnone 2.wav\n" + f"{sounds.parent / '0.wav'}\n")
    result = run("m2d-0.7", data, tmp_path / "other", ["epochs=1", "mean=-7", "std=4"])
    assert result.exit_code == 1 and "2 of 3 clips cannot be read, the first in row 2" in result.output


def test_members_of_shards_that_cannot_be_read_are_counted_once(sounds, tmp_path):
    import tarfile

    data = list_with_broken(sounds, tmp_path, 3, 1)
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        for file in data.read_text().split("\n")[1:-1]:
            tar.add(file, file.rsplit("/", 1)[1])
    out = tmp_path / "run"
    assert run("m2d-0.7", tmp_path / "clips.tar", out, ["epochs=5"]).exit_code == 3
    assert metrics_of(out)[-1]["skipped"] == 1
    assert [file for _, file, _ in errors_of(out)] == [f"{tmp_path / 'clips.tar'}:broken 0.wav"]


def test_clips_of_noise_and_of_the_validation_are_left_out_too(sounds, tmp_path):
    for name in ("noise", "valid"):
        (tmp_path / name).mkdir()
        list_with_broken(sounds, tmp_path / name, 2, 1)
    options = (
        "--noise",
        str(tmp_path / "noise" / "list.csv"),
        "--valid",
        str(tmp_path / "valid" / "list.csv"),
    )
    result = run("m2d-0.7", sounds, tmp_path / "run", ["epochs=5", "noise_ratio=0.2"], *options)
    assert result.exit_code == 3, result.output
    expected = {str(tmp_path / name / "broken 0.wav") for name in ("noise", "valid")}
    assert {file for _, file, _ in errors_of(tmp_path / "run")} == expected


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
    assert result.exit_code == 1 and "all of 2 clips hold one value, such as silence" in result.output


def test_a_loss_that_is_not_finite_ends_the_run(sounds, tmp_path):
    result = run("m2d-0.7", sounds, tmp_path, ["epochs=3", "base_lr=1e30", "warmup_epochs=0"])
    assert result.exit_code == 1 and "the loss is nan at step" in result.output


def test_a_frozen_model_teaches_further_pretraining(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path / "first", ["epochs=1"]).exit_code == 0
    export = str(tmp_path / "first" / "export")
    settings = ["epochs=1", "input_size=80x64", "patch_size=16x16", "accumulate_steps=1", "min_list_size=0"]
    options = ("--start", export, "--teacher", export, "--noise", str(sounds))
    result = run("m2d-x-icbhi2017", sounds, tmp_path / "second", settings, *options)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "second" / "config.json").read_text())["config"]
    assert config["offline"]["dim"] == 5 * 64 and config["noise_ratio"] == 0.3


KILLED = ["epochs=6", "save_every_steps=3", "noise_ratio=0.2", "accumulate_steps=2"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_killed_three_times_ends_with_the_same_weights(sounds, tmp_path, num_workers):
    settings, noise = [*KILLED, f"num_workers={num_workers}"], ("--noise", str(sounds))
    assert run("m2d-as", sounds, tmp_path / "whole", settings, *noise).exit_code == 0
    out = tmp_path / "killed"
    for lines in (4, 7, 10):
        kill_when(lines, out / "metrics.jsonl", [*TRAIN, *arguments("m2d-as", sounds, out, settings, *noise)])
    assert run("m2d-as", sounds, out, settings, *noise).exit_code == 0
    whole, killed = weights_of(tmp_path / "whole"), weights_of(out)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert (out / "train.log").read_text().count("Resumed from step") == 3
    assert [line["loss"] for line in metrics_of(out)] == [
        line["loss"] for line in metrics_of(tmp_path / "whole")
    ]


def test_a_float16_run_goes_on_bit_for_bit_and_with_its_loss_scale(sounds, tmp_path):
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


def test_a_half_written_checkpoint_is_not_resumed_from(sounds, tmp_path):
    assert run("m2d-0.7", sounds, tmp_path, ["epochs=1"]).exit_code == 0
    (tmp_path / "checkpoints" / "step-000000009.partial").write_bytes(b"cut off")
    assert run("m2d-0.7", sounds, tmp_path, ["epochs=1"]).exit_code == 0
    assert "Resumed from step 4" in (tmp_path / "train.log").read_text()


def test_answer_is_json_on_demand(sounds, tmp_path):
    result = run("msm-mae-0.75", sounds, tmp_path, ["epochs=1"], "--json")
    answer = json.loads(result.stdout.strip().splitlines()[-1])
    assert answer == {"run": str(tmp_path), "export": str(tmp_path / "export"), "left_out": 0}
