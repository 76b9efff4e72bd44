"""The commands as functions: called by keywords, answering with results; and what importing them loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from m2d_training import (
    PretrainConfig,
    finetune,
    linear_eval,
    prepare,
    pretrain,
)
from m2d_training.pretraining.presets import Preset

import m2d_hub

from ..signals import write_tones

pytestmark = pytest.mark.usefixtures("no_pictures")

SIZES = {
    "input_size": (80, 64),
    "patch_size": (16, 16),
    "embed_dim": 64,
    "depth": 1,
    "predictor_dim": 64,
    "predictor_depth": 1,
    "batch_size": 4,
    "warmup_epochs": 0,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A list of 12 tones in splits."""
    return write_tones(tmp_path_factory.mktemp("sounds"), ["train"] * 4 + ["valid"] * 4 + ["test"] * 4)


def test_each_command_is_a_function_of_keywords(labelled, tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "tiny")
    shards = prepare(labelled, out=tmp_path / "shards", num_workers=0, progress=False)
    assert (shards.clips, shards.out) == (4, tmp_path / "shards")
    trained = pretrain("m2d-0.7", data=shards.out, out=tmp_path / "run", progress=False, **SIZES)
    assert trained.steps == 1 and m2d_hub.load_model(trained.model, device="cpu").embed_dim == 64
    tuned = finetune(
        "small", model=tmp_path / "tiny", data=labelled, out=tmp_path / "tuned", epochs=1, min_steps=0,
        batch_size=4, try_linear=False,
    )  # fmt: skip
    assert tuned.metric == "accuracy" and tuned.model == tmp_path / "tuned" / "export"
    judged = linear_eval(model=tmp_path / "tiny", data=labelled, out=tmp_path / "eval", seeds=[1])
    assert 0 <= judged.interval.low <= judged.interval.value <= judged.interval.high <= 1


def test_a_given_start_replaces_the_start_of_the_preset(labelled, tmp_path):
    with pytest.raises(m2d_hub.M2DError, match="no-such-model"):
        pretrain("m2d-x-icbhi2017", data=labelled, out=tmp_path, start="no-such-model")
    assert not (tmp_path / "config.json").exists()


def test_a_preset_of_the_caller_is_recorded_by_its_name(labelled, tmp_path):
    config = PretrainConfig(**SIZES)
    result = pretrain(Preset(config, name="mine"), data=labelled, out=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["preset"] == "mine"
    assert result.out == tmp_path / "run"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pretrain("m2d-0.7", data="x", out="y", epoch=3), "Unknown field 'epoch'. Available: method"),
        (lambda: finetune("small", model="m", data="x", out="y", epoch=3), "Unknown field 'epoch'"),
        (lambda: pretrain("m2d-0.7", out="y"), "data must be given"),
        (lambda: finetune("small"), "model and data and out must be given"),
        (lambda: prepare("x"), "out must be given"),
    ],
)
def test_calls_with_missing_or_unknown_arguments_are_refused(call, message):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    "module", ["m2d_training", "m2d_training.cli.main", "m2d_hub.cli", "m2d_hub.cli.main"]
)
def test_importing_commands_loads_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
