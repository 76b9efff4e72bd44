"""Fine-tuning of image models as masked autoencoders: learning, exact resume, the recipe, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main
from m2d_training.data.sampling import SampleKey
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.finetuning.config import ImageConfig
from m2d_training.finetuning.images import ImageDataset, build_image_classifier
from m2d_training.finetuning.presets import FINETUNE_PRESETS
from m2d_training.finetuning.trainer import (
    FinetuneTrainer,
    TaskObjective,
    finetune_rate,
    parameter_groups,
)
from PIL import Image
from timm.data import resolve_model_data_config
from timm.loss import SoftTargetCrossEntropy

import m2d_hub
from m2d_hub.config import EncoderConfig, FrontendConfig, ModelConfig

pytestmark = pytest.mark.usefixtures("no_pictures")

QUICK = ["batch_size=4", "accumulate_steps=1", "warmup_epochs=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ImageNet's layout: two classes, 12 training and 8 validation images, and unlabelled test images."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8), ("test", 2)):
        for index in range(count):
            pixels = rng.integers(0, 60, (40, 48, 3))
            pixels[..., index % 2] += 180  # red or green
            place = root / split / ("" if split == "test" else ("n01440764", "n01443537")[index % 2])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{split}_{index}.png")
    return root


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A tiny image model, as the preset m2d-image exports it."""
    torch.manual_seed(0)
    config = ModelConfig(
        frontend=FrontendConfig(n_mels=32),
        encoder=EncoderConfig(input_size=(32, 32), patch_size=(8, 8), in_channels=3, embed_dim=64, depth=2),
    )
    path = tmp_path_factory.mktemp("seeing")
    m2d_hub.M2D(config).save_pretrained(path)
    return path


def arguments(model, data, out, *settings):
    changes = [part for setting in [*QUICK, *settings] for part in ("--set", setting)]
    return ["finetune", "imagenet", "--model", str(model), "--data", str(data), "--out", str(out), *changes]


def run(*args):
    return CliRunner().invoke(main, arguments(*args))


def finished(*args):
    """The report of a run that must succeed."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return json.loads((Path(args[2]) / "report.json").read_text())


def test_two_classes_are_learnt_from_an_imagenet_folder_and_timm_loads_the_model(seeing, folder, tmp_path):
    out = tmp_path / "run"
    plain = ["images.rand_augment=none", "images.erase_share=0", "images.label_smoothing=0"]
    report = finished(seeing, folder, out, "epochs=12", "lr=1e-3", "layer_decay=1", *plain)
    assert (report["metric"], report["test_clips"], report["value"]) == ("accuracy", 8, 1.0)
    assert report["epoch"] == "the last" and report["low"] < 1.0
    model = timm.create_model(f"local-dir:{out / 'export'}", pretrained=True).eval()
    data = resolve_model_data_config(model)
    assert (list(data["mean"]), data["crop_pct"]) == ([0.485, 0.456, 0.406], 0.875)
    transform = timm.data.create_transform(**data)
    assert model.pretrained_cfg["label_names"] == ["n01440764", "n01443537"]
    scores = torch.load(out / "trainings" / "test-seed-42" / "result.pt")["test_scores"]
    files = sorted((folder / "val" / "n01440764").iterdir())
    pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    torch.testing.assert_close(model(pixels).softmax(dim=-1), scores[: len(files)], atol=1e-5, rtol=1e-5)


def test_a_killed_run_ends_with_the_same_weights_and_scores(seeing, folder, tmp_path, monkeypatch):
    settings = ["epochs=3", "save_every_steps=2", "images.drop_path=0.5"]  # all augmentation
    finished(seeing, folder, tmp_path / "whole", *settings)
    train_step = FinetuneTrainer.train_step

    def killed_step(self, batches, step):
        if step == 5:
            raise KeyboardInterrupt
        return train_step(self, batches, step)

    with monkeypatch.context() as patched:
        patched.setattr(FinetuneTrainer, "train_step", killed_step)
        assert run(seeing, folder, tmp_path / "killed", *settings).exit_code == 1
    finished(seeing, folder, tmp_path / "killed", *settings)
    assert "Resumed test, seed 42, from step 4" in (tmp_path / "killed" / "train.log").read_text()
    weights = [(tmp_path / run / "export/model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_unreadable_images_are_skipped_and_listed(seeing, folder, tmp_path):
    rows = [["file", "label", "split"]]
    for split, use in (("train", "train"), ("val", "test")):
        files = sorted((folder / split).rglob("*.png"))
        rows += [[str(file), file.parent.name, use] for file in files]
    whole = (folder / "train" / "n01440764" / "train_0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    rows.append(["cut.png", "n01440764", "train"])
    with (tmp_path / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(rows)
    result = run(seeing, tmp_path / "list.csv", tmp_path / "run", "epochs=1")
    assert result.exit_code == 3, result.output
    with (tmp_path / "run" / "errors.csv").open() as lines:
        (error,) = csv.DictReader(lines)
    assert error["file"].endswith("cut.png") and "cannot be read as an image" in error["error"]


def test_the_preset_is_masked_autoencoders_recipe_for_vit_base():
    """FINETUNE.md and main_finetune.py of github.com/facebookresearch/mae; appendix A takes the same."""
    config = FINETUNE_PRESETS["imagenet"]
    assert config.batch_size * config.accumulate_steps == 1024
    assert config.lr == pytest.approx(5e-4 * 1024 / 256)
    assert (config.epochs, config.warmup_epochs, config.min_lr) == (100, 5, 1e-6)
    assert (config.layer_decay, config.weight_decay, config.mixup_ratio) == (0.65, 0.05, 0.8)
    assert (config.optimizer, config.beta2, config.clip_norm, config.head_std) == ("adamw", 0.999, None, 2e-5)
    expected = ImageConfig(0.1, 1.0, 0.1, "rand-m9-mstd0.5-inc1", 0.25)
    assert config.images == expected


def test_the_rate_is_that_of_masked_autoencoders():
    """adjust_learning_rate of its util/lr_sched.py: half a cosine that begins after the warm-up."""
    config = FINETUNE_PRESETS["imagenet"]
    assert finetune_rate(2.5, config) == pytest.approx(1e-3)
    for epoch in (5, 30, 80, 100):
        half = 0.5 * (1 + np.cos(np.pi * (epoch - 5) / 95))
        assert finetune_rate(epoch, config) == pytest.approx(1e-6 + (2e-3 - 1e-6) * half)


def test_rates_fall_by_layer_decay_and_only_matrices_decay(seeing):
    """0.65 ** (depth + 1 - i), i = 0 before the blocks, depth + 1 after them (util/lr_decay.py of MAE)."""
    config = FINETUNE_PRESETS["imagenet"]
    classifier = build_image_classifier(str(seeing), config, ("a", "b"), seed=42)
    names = {id(parameter): name for name, parameter in classifier.backbone.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(classifier.backbone, config)
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    assert found["patch_embed.proj.weight"] == pytest.approx((0.65**3, 0.05))
    assert found["cls_token"] == found["pos_embed"] == pytest.approx((0.65**3, 0.0))
    assert found["blocks.0.attn.qkv.weight"] == pytest.approx((0.65**2, 0.05))
    assert found["blocks.1.norm1.weight"] == pytest.approx((0.65, 0.0))
    assert found["fc_norm.weight"] == pytest.approx((1.0, 0.0))
    assert found["head.weight"] == pytest.approx((1.0, 0.05))


def test_the_network_is_the_pre_trained_encoder_without_its_last_norm(seeing):
    classifier = build_image_classifier(str(seeing), FINETUNE_PRESETS["imagenet"], ("a", "b"), seed=42)
    encoder = m2d_hub.load_model(seeing, device="cpu").encoder
    encoder.norm = torch.nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    classifier.backbone.eval()
    with torch.no_grad():
        expected = encoder.encode(encoder.embed(images))
        torch.testing.assert_close(
            classifier.backbone.forward_features(images), expected, atol=1e-5, rtol=1e-5
        )
    shares = [getattr(block.drop_path1, "drop_prob", 0.0) for block in classifier.backbone.blocks]
    assert shares == pytest.approx([0.0, 0.1])


def test_batches_depend_on_their_keys_alone_and_restore_the_random_generators(folder):
    part = read_labelled(folder, False, FINETUNE_PRESETS["imagenet"].split).folds()[0].train
    dataset = ImageDataset(part, FINETUNE_PRESETS["imagenet"], (32, 32), seed=1)
    keys = [SampleKey(2, position, position) for position in range(4)]

    def batch():
        return dataset.stack([dataset[key] for key in keys])

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = batch(), batch()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.targets, second.targets)
    assert first.seed == second.seed
    torch.testing.assert_close(first.targets.sum(dim=1), torch.ones(4))
    other = dataset[SampleKey(3, 0, 0)].pixels
    assert not torch.equal(other, dataset[keys[0]].pixels)
    logits = torch.randn(4, 2)
    expected = SoftTargetCrossEntropy()(logits, first.targets)
    torch.testing.assert_close(TaskObjective(False)(logits, first.targets), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["batch_size=3"], "batch_size must be even for images, which are mixed in pairs, got 3"),
        (["patchout_ratio=0.5"], "images is set, but patchout_ratio 0.5 only applies to audio"),
        (["images.rand_augment=much"], "rand_augment must"),
        (["images.drop_path=1"], "drop_path must be less than 1"),
    ],
)
def test_settings_that_do_not_apply_to_images_are_refused(seeing, folder, tmp_path, settings, message):
    result = run(seeing, folder, tmp_path / "run", *settings)
    assert result.exit_code != 0 and message in result.output


def test_models_and_clips_of_the_other_kind_are_refused(model, seeing, folder, clips, tmp_path):
    result = run(model, folder, tmp_path / "a")
    assert result.exit_code != 0 and "images need a model of 3 channels" in result.output
    small = ["finetune", "small", "--out", str(tmp_path / "b")]
    last = ["--select", "last", "--set", "try_linear=false", "--set", "patience=none"]
    result = CliRunner().invoke(main, [*small, "--model", str(model), "--data", str(folder), *last])
    assert result.exit_code != 0 and "the preset 'imagenet' is for images" in result.output
    sounds = sorted(clips.glob("*.wav"))[:4]
    with (tmp_path / "list.csv").open("w", newline="") as lines:
        rows = [
            [str(file), "ab"[place % 2], ("train", "test")[place // 2]] for place, file in enumerate(sounds)
        ]
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    result = run(seeing, tmp_path / "list.csv", tmp_path / "c")
    assert result.exit_code != 0 and "row 2 is audio" in result.output
    result = CliRunner().invoke(
        main,
        [*small, "--model", str(seeing), "--data", str(tmp_path / "list.csv"), *last],
    )
    assert result.exit_code != 0 and "is an image model (3 channels)" in result.output
