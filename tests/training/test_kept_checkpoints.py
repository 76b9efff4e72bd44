"""A checkpoint that a run keeps is a model like any other: wherever a model is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from m2d_training import linear_eval, pretrain
from m2d_training.pretraining.weights import start_weights

import m2d_hub
from m2d_hub.cli.main import main as hub
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import resolve

from ..signals import write_tones

RATE = 16_000
SIZES = {
    "input_size": (80, 64),
    "embed_dim": 64,
    "depth": 2,
    "head_width": 32,
    "predictor_dim": 64,
    "predictor_depth": 1,
    "batch_size": 2,
    "warmup_epochs": 1,
    "epochs": 2,
    "keep_every_epochs": 1,
    "mean": -5.0,
    "std": 3.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs, whose checkpoints of steps 3 and 6 are kept."""
    folder = tmp_path_factory.mktemp("run")
    write_tones(folder, ["train"] * 6 + ["valid"] * 2 + ["test"] * 2, samples=RATE)
    pretrain("m2d-0.7", data=folder / "list.csv", out=folder / "run", progress=False, **SIZES)
    return folder / "run"


def checkpoint(run, step):
    return run / "checkpoints" / f"step-{step:09d}.pt"


def test_the_last_checkpoint_is_the_exported_model(run):
    kept = m2d_hub.load_model(checkpoint(run, 6), device="cpu")
    exported = m2d_hub.load_model(run / "export", device="cpu")
    assert kept.config.frontend == exported.config.frontend  # statistics too
    assert kept.config.encoder == exported.config.encoder  # of heads 32 channels wide
    assert (kept.config.name, kept.config.license) == ("m2d-0.7, step 6", None)
    clip = run.parent / "0.wav"
    torch.testing.assert_close(kept.encode_clip(clip), exported.encode_clip(clip), rtol=0, atol=0)


def test_a_start_takes_predictor_and_target_encoder_too(run):
    kept, exported = start_weights(str(checkpoint(run, 6))), start_weights(str(run / "export"))
    assert kept.keys() == exported.keys()
    assert any(name.startswith("target_blocks.") for name in kept)
    assert all(torch.equal(kept[name], exported[name]) for name in kept)


def test_commands_and_evaluations_take_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run / "checkpoints")
    name = checkpoint(run, 3).name  # without a separator
    answer = CliRunner().invoke(
        hub, ["embed", str(run.parent / "0.wav"), "--model", name, "--out", str(tmp_path / "a.npz")]
    )
    assert answer.exit_code == 0, answer.output
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["embedding"].shape == (1, 5 * 64)
    result = linear_eval(
        model=name,
        data=run.parent / "list.csv",
        out=tmp_path / "eval",
        seeds=(1,),
        max_epochs=2,
        progress=False,
    )
    assert 0 <= result.interval.value <= 1
    assert sha256_of_model(resolve(name)) != sha256_of_model(checkpoint(run, 6))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "No such file.*Leave the file in its run's folder"),
        ("[", "Expecting value.*Leave the file in its run's folder"),
    ],
)
def test_without_the_sizes_of_its_run_it_is_refused_with_a_hint(run, tmp_path, config, message):
    (tmp_path / "checkpoints").mkdir()
    moved = Path(shutil.copy(checkpoint(run, 3), tmp_path / "checkpoints"))
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(m2d_hub.CheckpointError, match=message):
        m2d_hub.load_model(moved, device="cpu")


def test_a_checkpoint_of_a_fine_tuning_names_its_export(tmp_path):
    path = tmp_path / "step-000000003.pt"
    torch.save({"step": 3, "model": {"backbone.encoder.cls_token": torch.zeros(1)}, "optimizer": {}}, path)
    with pytest.raises(m2d_hub.CheckpointError, match=r"of an unfinished fine-tuning.*export/"):
        m2d_hub.load_model(path, device="cpu")
