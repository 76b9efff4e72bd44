"""The resolved configuration of a run, written before it starts and compared when it goes on."""

from __future__ import annotations

import json
import os
from typing import Any

from m2d_hub.errors import ConfigError

from ..data.sampling import EpochPlan
from ..pretraining.config import PretrainConfig
from ..pretraining.run_data import RunOptions
from .state import RunFolder, list_checkpoints, step_of

# Fields that change no weights; batch and accumulation may change as long as the global batch does not.
MAY_CHANGE = {
    "num_workers",
    "save_every_steps",
    "keep_every_epochs",
    "analyse_every_steps",
    "validate_every_epochs",
    "linear_eval_every_epochs",
    "batch_size",
    "accumulate_steps",
}
LENGTH = {"epochs", "decay_epochs"}  # may change while the rate is at its peak


def write_or_compare_config(
    folder: RunFolder, config: PretrainConfig, options: RunOptions, plan: EpochPlan, clips: int
) -> None:
    """Writes the resolved configuration, or checks that a run that goes on has the same one.

    Epochs may be more or fewer than before where the steps that are done would have been the same.

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    run = {"global_batch": plan.global_batch, "steps_per_epoch": plan.steps_per_epoch, "clips": clips}
    options_text = {key: None if value is None else str(value) for key, value in vars(options).items()}
    may_change = MAY_CHANGE | (LENGTH if _length_is_open(folder, config, plan.steps_per_epoch) else set())
    write_or_compare(
        folder, {"preset": options.name, "options": options_text}, run, config.to_dict(), may_change
    )


def _length_is_open(folder: RunFolder, config: PretrainConfig, steps_per_epoch: int) -> bool:
    """Whether nothing of what is done depends on the length, neither the old one nor the new one."""
    has_growing_tau = config.method != "msm-mae" and config.ema_start != config.ema_end
    if has_growing_tau or not folder.config_file.exists():
        return False
    checkpoints = list_checkpoints(folder)
    done = step_of(checkpoints[-1]) / steps_per_epoch if checkpoints else 0.0  # epochs
    old = json.loads(folder.config_file.read_text(encoding="utf-8"))["config"]
    lengths = ((old["epochs"], old.get("decay_epochs")), (config.epochs, config.decay_epochs))
    return all(decay is not None and done <= epochs - decay for epochs, decay in lengths)


def write_or_compare(
    folder: RunFolder, head: dict[str, Any], run: dict[str, Any], config: dict[str, Any], may_change: set[str]
) -> None:
    """Writes ``config.json``, or checks that a run that goes on has the same one.

    Args:
        folder: The run.
        head: What may be different when the run goes on.
        run: What the data and the machine say; it must be the same.
        config: The settings; those not in ``may_change`` must be the same.
        may_change: Names of settings that change no weights.

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    run, config = json.loads(json.dumps([run, config]))
    if folder.config_file.exists():
        old = json.loads(folder.config_file.read_text(encoding="utf-8"))
        _require_same({key: old.get(key) for key in run}, run, folder)
        changed = {key: value for key, value in config.items() if key not in may_change}
        _require_same({key: old["config"].get(key) for key in changed}, changed, folder)
    folder.root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**head, **run, "config": config}, indent=2)
    partial = folder.config_file.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, folder.config_file)


def _require_same(old: dict[str, Any], new: dict[str, Any], folder: RunFolder) -> None:
    different = [f"{key} {old[key]!r} there, {new[key]!r} now" for key in new if old[key] != new[key]]
    if different:
        raise ConfigError(
            f"{folder.root} holds a run of another configuration: {'; '.join(different)}. "
            "Give the same settings to resume it, or another --out."
        )
