"""Suites for each value of a field: of the evaluation, or of the pre-training whose models are evaluated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from m2d_hub.errors import ConfigError

from ..finetuning.config import FinetuneConfig
from ..linear.options import LinearEvalOptions
from ..runs.folder import RunFolder
from ..runs.resolved import read_config
from ..runs.settings import parse_sweep, split_sweep
from ..runs.state import checkpoint_path
from .summary import EPOCH
from .tasks import Suite


def evaluation_of(suite: Suite) -> Any:
    """Settings that all tasks of a suite share, as they are by default."""
    return LinearEvalOptions(model="", data="", out=Path()) if suite.is_linear else FinetuneConfig()


def swept_suites(suite: Suite, model: str, sweep: str) -> dict[str, dict[str, Any]]:
    """What each suite of a sweep has otherwise, by the name of its folder.

    Args:
        suite: Of all of them.
        model: As for :func:`m2d_hub.load_model`; or the folder of a pre-training's sweep of this field; or,
            for ``epoch=…``, that of a pre-training, whose checkpoints of these epochs were kept.
        sweep: As for :func:`parse_sweep`.

    Raises:
        ConfigError: The field is none of the evaluation, nor were these values of it swept in ``model``.
    """
    field, values = split_sweep(sweep)
    models = _models(Path(model), field, values)
    missing = [str(path) for path in models.values() if not path.exists()]
    if not missing:
        return {name: {"model": str(path)} for name, path in models.items()}
    if field in {known.name for known in dataclasses.fields(evaluation_of(suite))}:
        return parse_sweep(evaluation_of(suite), sweep)
    raise ConfigError(
        f"{field} is no field of {suite.name}, nor a finished sweep of the pre-training: there is no "
        f"{missing[0]}. Give the out of that sweep as model (for epoch, that of a pre-training)."
    )


def _models(model: Path, field: str, values: list[str]) -> dict[str, Path]:
    """What a pre-training, or a sweep of it, has left of each value."""
    run = RunFolder(model)
    if field != EPOCH or not run.checkpoints.is_dir():  # a model's folder has a config.json too
        return {f"{field}-{value}": RunFolder(model / f"{field}-{value}").export for value in values}
    steps_per_epoch = read_config(run)["steps_per_epoch"]
    if wrong := [value for value in values if not value.isdecimal()]:
        raise ConfigError(f"epoch must be whole numbers, got {wrong[0]!r}.")
    return {f"{EPOCH}-{value}": checkpoint_path(run, int(value) * steps_per_epoch) for value in values}
