"""Comparison of a pre-training run that goes on with how it began: what may differ, and what must not."""

from __future__ import annotations

import os
from typing import Any

from ..data.manifest import Manifest
from ..data.sampling import EpochPlan
from ..runs.folder import RunFolder
from ..runs.lists import ListedClips, write_or_compare_lists
from ..runs.resolved import read_config, write_or_compare
from ..runs.state import list_checkpoints, step_of
from .config import PretrainConfig
from .run_data import ResolvedRun, RunOptions
from .teachers import weights_digest

# Fields that change no weights, or no more than another machine does; batch and accumulation may change as
# long as the global batch does not.
MAY_CHANGE = {
    "num_workers",
    "compile",
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
    folder: RunFolder, options: RunOptions, plan: EpochPlan, data: ResolvedRun
) -> None:
    """Writes the resolved configuration, or checks that a run that goes on has the same one.

    Epochs may be more or fewer than before where the steps that are done would have been the same.

    Raises:
        ConfigError: The folder holds a run of another configuration.
    """
    config, clips = data.config, len(data.manifest.entries)
    run: dict[str, Any] = {
        "global_batch": plan.global_batch,
        "steps_per_epoch": plan.steps_per_epoch,
        "clips": clips,
    }
    if data.teacher is not None:
        run["teacher_weights"] = weights_digest(data.teacher.model)
    options_text = {key: None if value is None else str(value) for key, value in vars(options).items()}
    may_change = MAY_CHANGE | (LENGTH if _length_is_open(folder, config, plan.steps_per_epoch) else set())
    write_or_compare(
        folder, {"preset": options.name, "options": options_text}, run, config.to_dict(), may_change
    )
    write_or_compare_lists(
        folder, {"data": _listed(data.manifest), "noise": None if data.noise is None else _listed(data.noise)}
    )


def _listed(manifest: Manifest) -> ListedClips:
    entries = manifest.entries
    columns = {
        "member": [entry.name for entry in entries],
        "label": [entry.label for entry in entries],
        "caption": [entry.caption for entry in entries],
        "features": [os.path.basename(entry.features_path) for entry in entries],
    }
    return ListedClips.of([entry.path for entry in entries], columns)


def _length_is_open(folder: RunFolder, config: PretrainConfig, steps_per_epoch: int) -> bool:
    """Whether nothing of what is done depends on the length, neither the old one nor the new one."""
    has_growing_tau = config.method != "msm-mae" and config.ema_start != config.ema_end
    if has_growing_tau or not folder.config_file.exists():
        return False
    checkpoints = list_checkpoints(folder)
    done = step_of(checkpoints[-1]) / steps_per_epoch if checkpoints else 0.0  # epochs
    old = read_config(folder)["config"]
    lengths = ((old["epochs"], old.get("decay_epochs")), (config.epochs, config.decay_epochs))
    return all(decay is not None and done <= epochs - decay for epochs, decay in lengths)
