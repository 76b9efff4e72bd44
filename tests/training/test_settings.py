"""Fields that a user sets: never outweighed in silence by a preset's, nor without effect in silence."""

from __future__ import annotations

import dataclasses
import logging
import re

import pytest
from m2d_training import FinetuneConfig, OfflineConfig, PretrainConfig, load_finetune_preset, load_preset
from m2d_training.finetuning.presets import FINETUNE_PRESETS
from m2d_training.pretraining.presets import PRESETS
from m2d_training.runs.settings import apply_settings, with_fields

from m2d_hub import ConfigError

SMALL = load_finetune_preset("small")
FURTHER = load_preset("m2d-x-icbhi2017").config


@pytest.mark.parametrize("way", ["command line", "Python"])
def test_epochs_that_are_set_are_as_many_and_the_presets_steps_give_way(caplog, way):
    assert SMALL.scaled_to(1).epochs == SMALL.min_steps == 600
    caplog.clear()
    config = (
        apply_settings(SMALL, ["epochs=3"]) if way == "command line" else with_fields(SMALL, {"epochs": 3})
    )
    assert config.scaled_to(1) == config == dataclasses.replace(SMALL, epochs=3, min_steps=0)
    assert caplog.messages == ["min_steps=600 of the preset gives way to what was set: it is 0."]


def test_a_presets_longer_list_gives_way_to_samples_that_are_set(caplog):
    assert FURTHER.min_list_size == 10_000
    config = apply_settings(FURTHER, ["weighted_sampling=true", "samples_per_epoch=500"])
    assert (config.samples_per_epoch, config.min_list_size) == (500, 0)
    assert caplog.messages == ["min_list_size=10000 of the preset gives way to what was set: it is 0."]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (SMALL, ["epochs=3", "min_steps=50"]),  # both by the user
        (SMALL, ["min_steps=50"]),
        (SMALL, ["lr=1e-4", "patience=none"]),
        (load_finetune_preset("esc50"), ["epochs=3"]),  # nothing that would outweigh
        (FURTHER, ["epochs=3", "samples_per_epoch=none"]),
    ],
)
def test_other_settings_change_nothing_beside_them(caplog, config, settings):
    changed = apply_settings(config, settings)
    names = {setting.partition("=")[0] for setting in settings} | {"min_list_size"}
    own, before = dataclasses.asdict(changed), dataclasses.asdict(config)
    assert {name for name, value in own.items() if value != before[name]} <= names
    assert caplog.messages == []


def test_steps_that_make_more_epochs_are_told_with_all_that_grows(caplog):
    caplog.set_level(logging.INFO)
    FinetuneConfig(epochs=20, warmup_epochs=2, patience=5, min_steps=600).scaled_to(10)
    (told,) = caplog.messages
    assert told == (
        "min_steps=600 asks for more epochs of this list: epochs 20 becomes 60, warmup_epochs 2 becomes 6, "
        "patience 5 becomes 15."
    )
    caplog.clear()
    FinetuneConfig(epochs=20, min_steps=600).scaled_to(100)
    assert caplog.messages == []


INERT = [
    (
        SMALL,
        ["mixed=log-mel"],
        "mixed='log-mel' does nothing where mixup_ratio is 0.0: it is for",
    ),
    (
        load_finetune_preset("esc50"),
        ["amsgrad=true"],
        "amsgrad=True .* is 'sgd'.* 'adam' or 'adamw'",
    ),
    (FinetuneConfig(), ["num_masks=3"], "frequency_mask is 0 and time_mask is 0: it is for frequency_mask"),
    (SMALL, ["samples_per_epoch=9"], "samples_per_epoch=9 does nothing where weighted_sampling is False"),
    (
        PretrainConfig(),
        ["mask_run_frames=9"],
        "mask_run_frames=9 .* is 'random': it is for .*'time'",
    ),
    (
        PretrainConfig(),
        ["method=msm-mae", "ema_end=0.5"],
        "ema_end=0.5 .* where method is 'msm-mae'",
    ),
    (PretrainConfig(), ["noise_mean=-9"], "noise_mean=-9.0 does nothing where noise_ratio is 0.0"),
    (
        PretrainConfig(offline=OfflineConfig("labels", dim=3)),
        ["offline.text_pooling=cls"],
        "offline.text_pooling='cls' .* offline.kind is 'labels': it is for offline.kind 'text'",
    ),
]


@pytest.mark.parametrize(("config", "settings", "message"), INERT, ids=[case[1][-1] for case in INERT])
def test_a_field_that_does_nothing_is_told(caplog, config, settings, message):
    apply_settings(config, settings)
    (told,) = caplog.messages
    assert re.search(message, told)


@pytest.mark.parametrize("name", ["NEEDS", "YIELDS"])
def test_the_rules_are_no_fields(name):
    with pytest.raises(ConfigError, match=f"Unknown field '{name}'. Available: crop_frames"):
        apply_settings(SMALL, [f"{name}=1"])


ACTIVE = [
    (SMALL, ["mixed=log-mel", "mixup_ratio=0.3"]),
    (SMALL, ["amsgrad=true", "beta2=0.9"]),
    (FinetuneConfig(), ["time_mask=3", "num_masks=3"]),
    (PretrainConfig(), ["mask_kind=time", "mask_run_frames=9"]),
    (PretrainConfig(), ["offline.kind=text", "offline.text_dim=8"]),
    (load_finetune_preset("esc50"), ["amsgrad=false"]),  # as by default
]


@pytest.mark.parametrize(("config", "settings"), ACTIVE)
def test_fields_that_belong_together_are_silent(caplog, config, settings):
    apply_settings(config, settings)
    assert caplog.messages == []


@pytest.mark.parametrize("kind", [FinetuneConfig, PretrainConfig, OfflineConfig])
def test_the_rules_name_fields_that_there_are(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    for rules in (kind.NEEDS, kind.YIELDS):
        assert rules.keys() <= fields
        assert all(others.keys() <= fields for others in rules.values())


@pytest.mark.parametrize("name", [*FINETUNE_PRESETS, *PRESETS])
def test_no_preset_says_what_does_nothing(caplog, name):
    config = load_finetune_preset(name) if name in FINETUNE_PRESETS else load_preset(name).config
    with_fields(config, {field: getattr(config, field) for field in config.NEEDS})
    assert caplog.messages == []
