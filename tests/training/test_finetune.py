"""Fine-tuning runs through the console script: learning, report, exact resume, refusals."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training import finetune
from m2d_training.cli.main import main
from m2d_training.data.crops import CropPlan, crop_waveform
from m2d_training.data.entries import Entry
from m2d_training.evaluation import unreadable
from m2d_training.finetuning import run as finetuning
from m2d_training.finetuning.config import FinetuneConfig
from m2d_training.finetuning.data import clips_to_score
from m2d_training.finetuning.fold import Score
from m2d_training.finetuning.model import build_audio_classifier
from m2d_training.finetuning.presets import FINETUNE_PRESETS
from m2d_training.finetuning.trainer import (
    FinetuneTrainer,
    TaskObjective,
    build_optimizer,
    finetune_rate,
    inverse_class_weights,
    parameter_groups,
    set_rate,
)

import m2d_hub
from m2d_hub.cli.main import main as hub
from m2d_hub.config import FrontendConfig

RATE = 16_000
QUICK = ["epochs=1", "min_steps=0", "batch_size=4", "accumulate_steps=1", "try_linear=false"]


@pytest.fixture
def pictures():
    """For tests that look for pictures; the others draw none, which takes longest."""


@pytest.fixture(autouse=True)
def few_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("m2d_training.evaluation.charts.save", lambda *_: None)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Tones of different lengths, from 0.3 to 3.3 s, low or high."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for index in range(24):
        hertz = (200.0, 3000.0)[index % 2] * rng.uniform(0.8, 1.25)
        time_s = np.arange(RATE // 3 + 2000 * index) / RATE
        tone = 0.2 * np.sin(2 * np.pi * hertz * time_s) + 0.02 * rng.standard_normal(len(time_s))
        soundfile.write(folder / f"{index}.wav", tone, RATE)
    return folder


def write_list(path, sounds, labels=("low", "high"), splits=("train",) * 8 + ("valid",) * 2 + ("test",) * 2):
    """A list of all sounds; labels and splits take turns."""
    rows = [
        [sounds / f"{index}.wav", labels[index % len(labels)], splits[index % len(splits)]]
        for index in range(24)
    ]
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return path


@pytest.fixture
def labelled(sounds, tmp_path):
    return write_list(tmp_path / "list.csv", sounds)


def arguments(preset, model, data, out, settings=(), *options):
    changes = [part for setting in settings for part in ("--set", setting)]
    words = ("finetune", preset, "--model", model, "--data", data, "--out", out, *options, *changes)
    return [str(word) for word in words]


def run(*args):
    return CliRunner().invoke(main, arguments(*args))


def finished(*args):
    """The report of a run that must succeed."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return json.loads((Path(args[3]) / "report.json").read_text())


def weights_of(out):
    return m2d_hub.load_model(Path(out) / "export", device="cpu").state_dict()


def metrics_of(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def test_small_learns_to_distinguish_tones_and_the_export_tags_files(
    model, sounds, labelled, tmp_path, pictures
):
    before = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    out = tmp_path / "run"
    report = finished("small", model, labelled, out, [*QUICK, "epochs=12", "lr=3e-3", "layer_decay=1"])
    assert report["value"] == 1.0 and report["low"] <= report["value"] <= report["high"]
    left = {"config.json", "metrics.jsonl", "learning_curve.png", "report.json", "confusion.png", "worst.csv"}
    assert left <= {path.name for path in out.iterdir()}
    exported = m2d_hub.load_model(out / "export")
    assert exported.labels == ["high", "low"] and exported.head.config.activation == "softmax"
    options = ["tag", str(sounds / "0.wav"), "--model", str(out / "export"), "--json", "--top", "2"]
    tags = json.loads(CliRunner().invoke(hub, options).stdout)[0]["tags"]
    assert tags[0]["label"] == "low" and sum(tag["score"] for tag in tags) == pytest.approx(1.0, abs=1e-5)
    assert hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest() == before


def test_small_is_linear_evaluation_where_that_is_better_on_valid(model, sounds, labelled, tmp_path):
    settings = ["epochs=1", "min_steps=0", "batch_size=4", "lr=1e-12"]  # nothing but the layer is learnt
    report = finished("small", model, labelled, tmp_path / "run", settings)
    (training,) = report["trainings"]
    assert training["best_epoch"] == 0 and report["value"] == training["linear_valid_score"] == 1.0
    exported = m2d_hub.load_model(tmp_path / "run" / "export", device="cpu")
    pretrained = m2d_hub.load_model(model, device="cpu")
    assert torch.equal(exported.encoder.norm.weight, pretrained.encoder.norm.weight)
    features = pretrained.encode_clip([sounds / f"{index}.wav" for index in range(24) if index % 12 < 8])
    norm = exported.head.norm
    torch.testing.assert_close(norm.running_mean, features.mean(dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_var, features.var(dim=0, correction=0), atol=1e-5, rtol=1e-4)


def test_test_scores_are_those_of_the_exported_model_over_whole_clips(model, sounds, labelled, tmp_path):
    out = tmp_path / "run"
    finished("small", model, labelled, out, [*QUICK, "epochs=3"])
    exported = m2d_hub.load_model(out / "export", device="cpu")
    scores = torch.load(out / "trainings" / "test-seed-42" / "result.pt")["test_scores"]
    files = [sounds / f"{index}.wav" for index in (10, 11, 22, 23)]  # 1.6 to 3.2 s, in windows of 2.08 s
    for file, own in zip(files, scores, strict=True):
        tags = {tag.index: tag.score for tag in exported.classify(file)[0]}
        assert own.tolist() == pytest.approx([tags[0], tags[1]], abs=1e-5)


def test_clips_with_several_labels_get_a_sigmoid_head_and_average_precision(
    model, sounds, tmp_path, pictures
):
    data = write_list(tmp_path / "list.csv", sounds, ["Speech;Music", "Music", "Bird"])
    report = finished("small", model, data, tmp_path / "run", QUICK)
    assert report["metric"] == "mAP" and (tmp_path / "run" / "average_precision.png").exists()
    exported = m2d_hub.load_model(tmp_path / "run" / "export")
    assert exported.head.config.activation == "sigmoid" and len(exported.labels) == 527


def test_folds_and_seeds_are_averaged(model, sounds, tmp_path):
    data = write_list(tmp_path / "list.csv", sounds, splits=("1", "1", "2", "2", "3", "3"))
    out = tmp_path / "run"
    report = finished("small", model, data, out, QUICK, "--seeds", "2")
    assert list(report["per_round"]) == ["fold 1", "fold 2", "fold 3"]
    assert list(report["per_seed"]) == ["42", "43"] and report["test_clips"] == 24
    assert report["value"] == pytest.approx(np.mean(list(report["per_seed"].values())))
    assert report["over_seeds"]["mean"] == pytest.approx(report["value"])
    assert {(line["round"], line["seed"]) for line in metrics_of(out)} == {
        (f"fold {fold}", seed) for fold in (1, 2, 3) for seed in (42, 43)
    }


def test_seeds_can_be_added_to_a_finished_run(model, labelled, tmp_path):
    first = finished("small", model, labelled, tmp_path / "run", QUICK)
    second = finished("small", model, labelled, tmp_path / "run", QUICK, "--seeds", "2")
    assert second["per_seed"]["42"] == first["per_seed"]["42"] and len(second["per_seed"]) == 2


KILLED = [*QUICK, "epochs=4", "save_every_steps=3", "patchout_ratio=0.3"]


def test_a_run_killed_in_each_seed_ends_with_the_same_weights_and_report(
    model, labelled, tmp_path, monkeypatch
):
    whole = finished("small", model, labelled, tmp_path / "whole", KILLED, "--seeds", "2")
    out, arguments = (
        tmp_path / "killed",
        ("small", model, labelled, tmp_path / "killed", KILLED, "--seeds", "2"),
    )
    train_step, kill_at = FinetuneTrainer.train_step, [7, 5]  # steps of the first and the second seed

    def killed_step(self, batches, step):
        if kill_at and step == kill_at[0]:
            kill_at.pop(0)
            raise KeyboardInterrupt
        return train_step(self, batches, step)

    monkeypatch.setattr(FinetuneTrainer, "train_step", killed_step)
    assert [run(*arguments).exit_code for _ in range(2)] == [1, 1]
    killed = finished(*arguments)
    expected, found = weights_of(tmp_path / "whole"), weights_of(out)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (out / "train.log").read_text().count("Resumed test, seed 4") == 2
    losses = [[line["loss"] for line in metrics_of(folder)] for folder in (out, tmp_path / "whole")]
    assert losses[0] == losses[1]
    for seed in (42, 43):
        path = Path("trainings") / f"test-seed-{seed}" / "result.pt"
        scores = [torch.load(folder / path)["test_scores"] for folder in (out, tmp_path / "whole")]
        assert torch.equal(*scores)
    assert killed["value"] == whole["value"]


def test_clips_are_checked_once_and_a_finished_run_reads_none(model, labelled, tmp_path, monkeypatch):
    read = []
    check = unreadable.read_sound
    monkeypatch.setattr(finetuning, "read_sound", lambda file: (read.append(file), check(file))[1])
    monkeypatch.setattr(FinetuneTrainer, "train_step", lambda *_: 1 / 0)
    assert isinstance(run("small", model, labelled, tmp_path / "run", QUICK).exception, ZeroDivisionError)
    assert len(read) == 24
    monkeypatch.undo()
    monkeypatch.setattr(finetuning, "read_sound", lambda file: read.append(file))
    finished("small", model, labelled, tmp_path / "run", QUICK)
    assert len(read) == 24
    monkeypatch.setattr("m2d_training.finetuning.data.open_audio", lambda *_: 1 / 0)
    before = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    finished("small", model, labelled, tmp_path / "run", QUICK)
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("index", [0, 8])  # of the train and the valid clips
def test_a_clip_that_is_gone_during_the_training_is_skipped_and_named(
    model, sounds, tmp_path, monkeypatch, caplog, index
):
    for file in sounds.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    train_step, gone = FinetuneTrainer.train_step, tmp_path / f"{index}.wav"

    def step_after_removal(self, batches, step):
        gone.unlink(missing_ok=True)
        return train_step(self, batches, step)

    monkeypatch.setattr(FinetuneTrainer, "train_step", step_after_removal)
    data = write_list(tmp_path / "list.csv", tmp_path)
    result = run("small", model, data, tmp_path / "run", [*QUICK, "epochs=2"])
    assert f"{gone} does not exist" in caplog.text
    if index:  # the model is the best of no epoch, so the clips are needed at the end; the training is saved
        assert result.exit_code == 1 and list((tmp_path / "run").rglob("step-000000008.pt"))
    else:
        assert result.exit_code == 0
        assert str(gone) in (tmp_path / "run" / "errors.csv").read_text()


def test_trainings_in_threads_end_with_the_same_weights(model, labelled, tmp_path):
    quick = {"epochs": 1, "min_steps": 0, "batch_size": 4, "try_linear": False, "progress": False}

    def train(name):
        finetune("small", model=model, data=labelled, out=tmp_path / name, **quick)
        return weights_of(tmp_path / name)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(train, map(str, range(3)))
    assert all(torch.equal(first[name], weights[name]) for weights in others for name in first)


# Classes that each preset's data has
AUDIOSET = ["Speech;Music", "Music", "Bird"]
CYCLES = ["Normal", "Crackle", "Wheeze", "Normal"]
LABELS = {"as2m": AUDIOSET, "as20k": AUDIOSET, "icbhi2017": CYCLES, "sprsound": CYCLES}


@pytest.mark.parametrize("preset", [name for name in FINETUNE_PRESETS if name != "imagenet"])
def test_every_preset_of_sounds_starts(preset, model, sounds, tmp_path):
    data = write_list(tmp_path / "list.csv", sounds, LABELS.get(preset, ["low", "high"]))
    report = finished(preset, model, data, tmp_path / "run", QUICK)
    config = FINETUNE_PRESETS[preset]
    lines = metrics_of(tmp_path / "run")
    assert len(lines) == 4 and all(np.isfinite(line["loss"]) for line in lines)
    exported = m2d_hub.load_model(tmp_path / "run" / "export", device="cpu")
    # The mean over all tokens where patchout takes some away (paper, section IV-B).
    assert exported.head.config.features == ("tokens" if config.patchout_ratio else "frames")
    frames = config.crop_frames if config.adjust_positions else 208
    assert exported.config.encoder.input_size == (80, frames)
    if not config.head_norm:  # the running statistics stay as they are
        assert not exported.head.norm.running_mean.any() and (exported.head.norm.running_var == 1).all()
    if config.metric == "icbhi":
        assert report["value"] == pytest.approx((report["sensitivity"] + report["specificity"]) / 2)
    before = m2d_hub.load_model(model, device="cpu").encoder.patch_embed.proj.weight
    is_fixed = torch.equal(before, exported.encoder.patch_embed.proj.weight)
    assert is_fixed == config.freeze_patch_embed


def test_presets_are_the_papers_table_ii():
    columns = {
        "as2m": (2.0, 64, "lars", 0.5, False, 30, 192, 70, 15, 0.5, True, False),
        "as20k": (0.5, 64, "sgd", 0.3, True, 30, 192, 200, 5, 0.5, True, False),
        "esc50": (0.5, 128, "sgd", 0.0, True, 15, 48, 200, 5, 0.5, True, True),
        "spcv2": (0.5, 128, "sgd", 0.3, True, 30, 48, 200, 5, 0.5, False, False),
        "vc1": (0.0005, 64, "adamw", 0.0, False, 30, 48, 50, 5, 0.0, True, False),
    }
    vc1 = FINETUNE_PRESETS["vc1"]
    assert (vc1.weight_decay, vc1.beta2, vc1.amsgrad, vc1.decay_all) == (1e-4, 0.95, True, True)
    fields = (
        "lr batch_size optimizer mixup_ratio resized_crop frequency_mask time_mask epochs warmup_epochs "
        "patchout_ratio adjust_positions freeze_patch_embed"
    )
    for preset, column in columns.items():
        config = FINETUNE_PRESETS[preset]
        assert tuple(getattr(config, name) for name in fields.split()) == column


def test_the_first_blocks_can_be_frozen(model, labelled, tmp_path):
    finished("small", model, labelled, tmp_path / "run", [*QUICK, "frozen_blocks=1"])
    before, after = m2d_hub.load_model(model, device="cpu").state_dict(), weights_of(tmp_path / "run")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert not any(name.startswith(("encoder.blocks.0", "encoder.patch", "encoder.cls")) for name in changed)
    assert "encoder.blocks.1.attn.qkv.weight" in changed


def test_training_stops_when_the_patience_runs_out(model, sounds, tmp_path):
    labels = np.random.default_rng(1).permutation(["low", "high"] * 12).tolist()  # nothing to learn
    data = write_list(tmp_path / "list.csv", sounds, labels)
    settings = [*QUICK, "epochs=60", "patience=3", "lr=1e-2"]
    report = finished("small", model, data, tmp_path / "run", settings)
    (training,) = report["trainings"]
    assert training["epochs"] == training["best_epoch"] + 3 < 60
    scores = [line["validation_score"] for line in metrics_of(tmp_path / "run") if "validation_score" in line]
    assert training["valid_score"] == max(scores)


def test_epochs_are_compared_by_score_then_by_loss():
    best = Score(step=1, score=0.5, loss=1.0)
    assert best.is_worse_than(Score(2, 0.6, 2.0)) and best.is_worse_than(Score(2, 0.5, 0.9))
    assert not best.is_worse_than(Score(2, 0.5, 1.0)) and not best.is_worse_than(Score(2, 0.4, 0.1))


def test_short_lists_are_trained_for_more_epochs():
    config = FinetuneConfig(epochs=20, warmup_epochs=2, patience=5, min_steps=600).scaled_to(10)
    assert (config.epochs, config.warmup_epochs, config.patience) == (60, 6, 15)
    assert FinetuneConfig(epochs=20, min_steps=600).scaled_to(100).epochs == 20


def test_rates_fall_from_the_head_down_and_only_matrices_decay(tiny):
    tiny.set_head(3)
    config = FinetuneConfig(layer_decay=0.5, weight_decay=0.1, lr=1e-3, warmup_epochs=0, epochs=10)
    optimizer = build_optimizer(parameter_groups(tiny, config), config)
    assert set_rate(optimizer, config, step=0, steps_per_epoch=10) == pytest.approx(1e-3)
    names = {id(parameter): name for name, parameter in tiny.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found["head.linear.weight"] == pytest.approx((1e-3, 0.1))
    assert found["head.linear.bias"] == pytest.approx((1e-3, 0.0))
    assert found["encoder.blocks.1.attn.qkv.weight"] == pytest.approx((5e-4, 0.1))
    assert found["encoder.blocks.0.norm1.weight"] == pytest.approx((2.5e-4, 0.0))
    assert found["encoder.patch_embed.proj.weight"] == pytest.approx((1.25e-4, 0.1))
    assert "encoder.pos_embed" not in found


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_optimizers_start_at_the_peak_only_after_the_warmup(tiny, name):
    tiny.set_head(3)
    config = FinetuneConfig(optimizer=name, lr=0.5, warmup_epochs=5, epochs=200)
    optimizer = build_optimizer(parameter_groups(tiny, config), config)
    rates = [set_rate(optimizer, config, step, steps_per_epoch=2) for step in (0, 5, 400)]
    assert rates == pytest.approx([0.0, 0.25, 0.0], abs=1e-9)
    assert type(optimizer).__name__.lower() == name


def test_a_window_of_unbounded_length_is_replaced_by_the_input_size(tiny, tmp_path):
    tiny.set_window(float("inf"))
    tiny.save_pretrained(tmp_path)
    built = build_audio_classifier(str(tmp_path), FinetuneConfig(), ("low", "high"), False, seed=42)
    assert built.backbone.window_s == pytest.approx(2.08)


def test_the_cosine_starts_at_the_first_epoch():
    """timm's, as in the paper's AudioSet runs: 1.782 of 2.0 after 15 epochs of warm-up, 1.000 after 35."""
    config = FINETUNE_PRESETS["as2m"]
    rates = [finetune_rate(epoch, config) for epoch in (7.5, 15, 35, 70)]
    assert rates == pytest.approx([1.0, 1.782, 1.0, 1e-7], abs=5e-4)


def test_a_shorter_cosine_rises_again():
    """PyTorch's CosineAnnealingLR of T_max 40 over 150 epochs, as for the respiratory tasks."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=5e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=1e-6)
    config, expected = FINETUNE_PRESETS["icbhi2017"], []
    for _ in range(150):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [finetune_rate(epoch, config) for epoch in range(150)] == pytest.approx(expected, rel=1e-3)


def test_cross_entropy_is_averaged_over_the_classes_where_the_papers_rates_expect_it():
    logits, targets = torch.randn(6, 50), torch.eye(50)[:6]
    plain = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(TaskObjective(False)(logits, targets), plain)
    torch.testing.assert_close(TaskObjective(False, over_classes=True)(logits, targets), plain / 50)
    weights = torch.rand(50)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6), weight=weights)
    torch.testing.assert_close(TaskObjective(False, weights)(logits, targets), expected)


def test_clips_of_another_length_are_evaluated_by_their_beginnings(model, tmp_path):
    backbone = m2d_hub.load_model(model, device="cpu")
    rng = np.random.default_rng(0)
    lengths, files = {"long": 40_000, "short": 5_000}, []
    for name, length in lengths.items():
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, length), 16_000, subtype="FLOAT")
        files.append(str(tmp_path / f"{name}.wav"))

    def scored(**settings):
        config = FinetuneConfig(crop_frames=101, **settings)  # 1 s: 16,000 samples
        return [clip for clips in clips_to_score(files, backbone, config) for clip in clips]

    whole = scored()
    assert [len(clip) for clip in whole] == [40_000, 5_000]
    padded = scored(crop_test=True, short_clips="pad")
    assert torch.equal(padded[0], whole[0][:16_000])
    assert torch.equal(padded[1][:5_000], whole[1]) and not padded[1][5_000:].any()
    assert [len(clip) for clip in scored(crop_test=True)] == [16_000, 5_000]
    repeated = scored(crop_test=True, short_clips="repeat")[1]
    torch.testing.assert_close(repeated, whole[1].repeat(4)[:16_000])


@pytest.mark.parametrize("length", [5_000, 40_000])
def test_a_cycle_fades_in_and_out_before_it_is_repeated_and_the_crop_fades_out(tmp_path, length):
    """Over 1/16 s each: the paper's reference [73], in training as in the test."""
    cycle = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    soundfile.write(tmp_path / "cycle.wav", cycle, 16_000, subtype="FLOAT")
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)
    expected = cycle.copy()
    expected[:1000] *= ramp
    expected[-1000:] *= ramp[::-1]
    expected = np.tile(expected, 4)[:16_000]
    expected[-1000:] *= ramp[::-1]
    plan = CropPlan(FrontendConfig(), 101, short_clips="repeat", fades=True)
    np.testing.assert_allclose(plan.beginning(cycle), expected, atol=1e-7)
    crop = crop_waveform(Entry(str(tmp_path / "cycle.wav")), plan, np.random.default_rng(0))
    np.testing.assert_allclose(crop.values[200:-200], expected, atol=1e-7)
    assert len(crop.values) == plan.num_samples


def test_weight_decay_beside_the_mean_of_four_batches_equals_four_times_it_beside_their_sum(tiny):
    """The reference code of the respiratory recipe adds the gradients of four batches; its L2 is 1e-4."""
    config = FINETUNE_PRESETS["icbhi2017"]
    assert config.accumulate_steps * config.weight_decay == 1e-4
    ours, theirs = (torch.nn.Linear(8, 4, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": ours.parameters(), "weight_decay": config.weight_decay, "lr_scale": 1.0}]
    optimizer = build_optimizer(groups, dataclasses.replace(config, lr=1e-2))
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, weight_decay=1e-4, eps=4e-8)
    inputs, classes = torch.randn(12, 16, 8, dtype=torch.float64), torch.randint(4, (12, 16))
    losses = []
    for step in range(3):
        for model, used, share in ((ours, optimizer, 0.25), (theirs, reference, 1.0)):
            used.zero_grad()
            for batch in range(4 * step, 4 * step + 4):
                loss = torch.nn.functional.cross_entropy(model(inputs[batch]), classes[batch])
                (share * loss).backward()
                losses.append(loss.item())
            used.step()
    ours_losses, their_losses = (np.array(losses).reshape(3, 2, 4)[:, index] for index in (0, 1))
    np.testing.assert_allclose(ours_losses, their_losses, rtol=1e-10)


def test_without_weight_decay_lars_takes_the_steps_of_sgd():
    """timm's Lars adapts no tensor that does not decay: the "LARS" of the paper's AudioSet runs."""
    config, weights = FINETUNE_PRESETS["as2m"], []
    for name in ("lars", "sgd"):
        model = torch.nn.Linear(8, 4)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        groups = [{"params": model.parameters(), "weight_decay": config.weight_decay, "lr_scale": 1.0}]
        optimizer = build_optimizer(groups, dataclasses.replace(config, optimizer=name))
        for step in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 8), step + 1.0)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=0)


def test_first_weights_of_the_respiratory_head_are_those_of_a_linear_layer(model):
    config = FINETUNE_PRESETS["icbhi2017"]
    head = build_audio_classifier(str(model), config, ("a", "b", "c"), False, seed=42).backbone.head.linear
    bound = head.in_features**-0.5
    assert 0.97 * bound < head.weight.abs().max() <= bound and head.bias.abs().max() <= bound
    assert head.bias.any()


def test_esc50_is_trained_at_its_rate_with_31_columns(model, sounds, labelled, tmp_path):
    """Preset esc50: SGD at 0.5, and positions of 31 columns for 501 frames, in training and evaluation."""
    finished("esc50", model, labelled, tmp_path / "run", ["epochs=1", "warmup_epochs=0", "batch_size=6"])
    steps = metrics_of(tmp_path / "run")
    assert [step["lr"] for step in steps] == pytest.approx([0.5, 0.375, 0.125], abs=1e-6)  # 16 clips: 6, 6, 4
    assert all(0 < step["loss"] < 2 for step in steps)
    export = m2d_hub.load_model(tmp_path / "run" / "export", device="cpu")
    assert export.config.encoder.input_size[1] == 501 and export.encoder.pos_embed.shape[1] == 1 + 5 * 31


def test_select_chooses_the_last_epoch_or_the_best_on_test(model, sounds, tmp_path):
    data = write_list(tmp_path / "list.csv", sounds, splits=("train", "train", "train", "test"))
    settings = [*QUICK, "epochs=3"]
    refused = run("small", model, data, tmp_path / "refused", settings)
    assert refused.exit_code == 1 and "set valid_share=0.1 to hold out a tenth" in refused.output
    refused = run("small", model, data, tmp_path / "refused", QUICK, "--select", "last")
    assert refused.exit_code == 1 and "patience=none" in refused.output
    last = finished("small", model, data, tmp_path / "last", [*settings, "patience=none"], "--select", "last")
    assert last["trainings"][0]["best_epoch"] == 3 and last["epoch"] == "the last"
    test = finished("small", model, data, tmp_path / "test", settings, "--select", "test")
    scores = [
        line["validation_score"] for line in metrics_of(tmp_path / "test") if "validation_score" in line
    ]
    assert test["value"] == pytest.approx(max(scores)) and test["epoch"].startswith("best on test, as in")
    held_out = finished("small", model, data, tmp_path / "held-out", QUICK, "--valid-share", "0.2")
    assert held_out["epoch"] == "best on the validation clips"


def test_class_weights_are_inverse_to_the_clips():
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    weights = inverse_class_weights(targets)
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])
    assert float(weights[targets.argmax(dim=1)].mean()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("preset", "labels", "settings", "message"),
    [
        ("smal", ["a", "b"], [], "Unknown preset 'smal'. Available: as2m, as20k, esc50, "),
        ("small", ["a", "b"], ["mixup=1"], "Unknown field 'mixup'. Available: crop_frames, crop_from_start"),
        ("small", ["a", "b"], ["batch_size=1"], "batch_size must be at least 2, since the head normalises"),
        ("small", ["a", "b"], ["adjust_positions=true"], "set crop_frames too"),
        ("small", ["a", "b"], ["frozen_blocks=3"], "frozen_blocks must be at most 2, the blocks of"),
        ("small", ["a", "b"], ["lr=inf"], "lr must be a finite number, got"),
        ("small", ["a;b", "b"], ["loss=cross-entropy"], "which loss 'cross-entropy' does not support"),
        ("icbhi2017", ["a", "b"], [], "'Normal' is not one of a, b; set normal_class"),
        ("icbhi2017", ["a;b", "b"], [], "row 2 is the first of 12), which metric 'icbhi' and class_weights"),
        ("icbhi2017", ["normal", "a", "b"], [], "the test clips of 'test' are never 'normal'"),
        ("as2m", ["a", "b"], ["metric=accuracy"], "loss 'bce' is for several labels per clip"),
    ],
)
def test_contradicting_settings_are_refused(model, sounds, tmp_path, preset, labels, settings, message):
    data = write_list(tmp_path / "list.csv", sounds, labels)
    result = run(preset, model, data, tmp_path / "run", settings)
    assert result.exit_code == 1 and message in result.output


def test_a_folder_of_another_run_is_refused(model, sounds, labelled, tmp_path):
    finished("small", model, labelled, tmp_path / "run", QUICK)
    result = run("small", model, labelled, tmp_path / "run", [*QUICK, "lr=1e-4"])
    assert result.exit_code == 1 and "lr was 0.001, is 0.0001" in result.output
    other = write_list(tmp_path / "other.csv", sounds, ["a", "b"])
    result = run("small", model, other, tmp_path / "run", QUICK)
    assert result.exit_code == 1 and "labels was ['high', 'low'], is ['a', 'b']" in result.output


@pytest.mark.parametrize("name", ["report.json", "export/config.json"])
def test_files_that_are_not_of_a_fine_tuning_are_never_overwritten(model, labelled, tmp_path, name):
    other = tmp_path / "run" / name
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    result = run("small", model, labelled, tmp_path / "run", QUICK)
    assert result.exit_code == 1, result.output
    assert other.read_text() == "{}"


def test_help_shows_an_example_and_json_is_printed_on_demand(model, labelled, tmp_path):
    assert "m2d-train finetune small --model" in CliRunner().invoke(main, ["finetune", "--help"]).output
    result = run("small", model, labelled, tmp_path / "run", QUICK, "--json")
    answer = json.loads(result.stdout.strip().splitlines()[-1])
    assert answer["export"] == str(tmp_path / "run" / "export") and answer["metric"] == "accuracy"


@pytest.mark.parametrize("place", [0, 8, 10])  # of the train, the valid and the test clips
def test_an_unreadable_clip_is_skipped_before_the_training(model, sounds, tmp_path, place):
    path = write_list(tmp_path / "list.csv", sounds)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound")
    lines = path.read_text().splitlines()
    lines[place + 1] = ",".join(["broken.wav", *lines[place + 1].split(",")[1:]])
    path.write_text("\n".join(lines) + "\n")
    out = tmp_path / "run"
    result = run("small", model, path, out, QUICK, "--json")
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout.splitlines()[-1])["left_out"] == 1
    with (out / "errors.csv").open(newline="") as errors:
        (error,) = csv.DictReader(errors)
    assert error["row"] == str(place + 2) and error["file"].endswith("broken.wav") and error["error"]
    assert (out / "export" / "model.safetensors").is_file()
