"""Settings: checked from one declaration, changed by ``--set`` and by keywords, never overridden silently."""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
from m2d_training import FinetuneConfig, OfflineConfig, PretrainConfig, load_finetune_preset, load_preset
from m2d_training.runs.settings import apply_settings, parse_settings, with_fields

from m2d_hub import ConfigError

SMALL = load_finetune_preset("small")
FURTHER = load_preset("m2d-x-icbhi2017").config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "mae"}, "method must be 'm2d', 'm2d-all-patches' or 'msm-mae', got 'mae'"),
        ({"epoch": 3}, "Unknown field 'epoch'. Available: method, input_size"),
        ({"epochs": True}, "epochs must be a valid integer, got True"),
        ({"num_workers": 1.5}, "num_workers must be a valid integer, got 1.5"),
        ({"weight_decay": "0.05"}, "weight_decay must be a valid number, got '0.05'"),
        ({"decay_epochs": 0}, "decay_epochs must be greater than 0, got 0"),
        ({"noise_ratio": 1.5}, "noise_ratio must be less than or equal to 1, got 1.5"),
        ({"seed": 1 << 80}, "seed must be less than 9223372036854775808"),
        ({"base_lr": math.inf}, "base_lr must be a finite number, got inf"),
        ({"clip_norm": math.nan}, "clip_norm must be greater than 0, got nan"),
        ({"patch_size": (16, True)}, "patch_size must be two positive integers, on the command line a size"),
        ({"input_size": (30, 48)}, "30 mels is not a multiple of 16"),
        ({"offline": {"kind": "label"}}, "kind must be 'features', 'labels' or 'text', got 'label'"),
        ({"method": "msm-mae", "loss": "cosine"}, "leave loss unset or set 'mse', got 'cosine'"),
        ({"predictor_dim": 66}, "predictor_dim 66 is not a multiple of 4 and of predictor_head_width"),
        ({"mask_kind": "time", "mask_ratio": 0.0}, "leaves 190 of 190 patches visible with mask_kind time"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError) as refused:
        PretrainConfig(**fields)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask_ratio", "--set takes field=value, got 'mask_ratio'"),
        ("mask_ratios=0.5", "Unknown field 'mask_ratios'. Available: method, input_size"),
        ("input_size=80", "input_size must be two positive integers, on the command line a size such as"),
        ("epochs=two", "epochs must be a valid integer, got 'two'"),
        ("offline.weight=1", "offline.kind must be given"),
        ("offline=labels", "set a field of it, such as offline.kind"),
        ("epochs.x=1", "epochs cannot be set by 'epochs.x=1': no such field"),
        ("offline.dims=1", "Unknown field 'dims'. Available: kind, dim"),
        ("YIELDS=1", "Unknown field 'YIELDS'"),
    ],
)
def test_wrong_settings_are_refused_by_name(text, message):
    with pytest.raises(ConfigError) as refused:
        apply_settings(PretrainConfig(), [text])
    assert message in str(refused.value)


def test_settings_are_parsed_by_the_types_of_the_fields():
    texts = ["input_size=80x64", "offline.kind=text", "offline.dim=3", "clip_norm=inf", "compile=true"]
    config = apply_settings(PretrainConfig(), [*texts, "loss=none", "epochs=2", "mask_kind=time"])
    assert config == PretrainConfig(
        input_size=(80, 64), offline=OfflineConfig("text", dim=3), clip_norm=math.inf, compile=True, epochs=2,
        mask_kind="time",
    )  # fmt: skip
    assert apply_settings(config, ["offline.weight=0.5"]).offline.dim == 3
    assert parse_settings(config, ["offline=none"]) == {"offline": None}


def test_numbers_of_numpy_are_taken_as_pythons_own():
    config = PretrainConfig(
        epochs=np.int64(3), base_lr=np.float32(0.5), compile=np.bool_(True), input_size=(np.int32(80), 64)
    )
    assert config == PretrainConfig(epochs=3, base_lr=0.5, compile=True, input_size=(80, 64))
    assert json.loads(json.dumps(config.to_dict()))["compile"] is True


@pytest.mark.parametrize("preset", ["m2d-0.7", "m2d-as", "m2d-clap", "m2d-mini"])
def test_a_configuration_comes_back_from_json_and_is_hashable(preset):
    config = load_preset(preset).config
    back = PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config and hash(back) == hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.epochs = 1


@pytest.mark.parametrize("kind", ["command line", "Python"])
def test_epochs_that_are_set_override_the_steps_of_the_preset(caplog, kind):
    assert SMALL.scaled_to(1).epochs == SMALL.min_steps == 600
    caplog.clear()
    config = (
        apply_settings(SMALL, ["epochs=3"]) if kind == "command line" else with_fields(SMALL, {"epochs": 3})
    )
    assert config.scaled_to(1) == config == dataclasses.replace(SMALL, epochs=3, min_steps=0)
    assert caplog.messages == ["min_steps=600 of the preset is overridden by what was set: it is now 0."]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (SMALL, ["epochs=3", "min_steps=50"]),  # both by the user
        (SMALL, ["lr=1e-4", "patience=none"]),
        (FURTHER, ["epochs=3", "samples_per_epoch=none"]),
    ],
)
def test_other_settings_change_no_further_fields(caplog, config, settings):
    changed = apply_settings(config, settings)
    names = {setting.partition("=")[0] for setting in settings}
    own, before = dataclasses.asdict(changed), dataclasses.asdict(config)
    assert {name for name, value in own.items() if value != before[name]} <= names
    assert caplog.messages == []


def test_scaling_to_min_steps_is_logged(caplog):
    caplog.set_level(logging.INFO)
    FinetuneConfig(epochs=20, warmup_epochs=2, patience=5, min_steps=600).scaled_to(10)
    (message,) = caplog.messages
    assert "epochs 20 becomes 60, warmup_epochs 2 becomes 6, patience 5 becomes 15." in message
    caplog.clear()
    FinetuneConfig(epochs=20, min_steps=600).scaled_to(100)
    assert caplog.messages == []
