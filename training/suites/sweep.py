"""Suites for each value of a field: of the evaluation, or of the pre-training whose models are evaluated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from m2d_hub.errors import ConfigError

from ..finetuning.config import FinetuneConfig
from ..linear.options import LinearEvalOptions
from ..runs.folder import RunFolder
from ..runs.settings import parse_sweep, split_sweep
from .tasks import Suite


def evaluation_of(suite: Suite) -> Any:
    """Settings that all tasks of a suite share, as they are by default."""
    return LinearEvalOptions(model="", data="", out=Path()) if suite.is_linear else FinetuneConfig()


def swept_suites(suite: Suite, model: str, sweep: str) -> dict[str, dict[str, Any]]:
    """What each suite of a sweep has otherwise, by the name of its folder.

    Args:
        suite: Of all of them.
        model: As for :func:`m2d_hub.load_model`, or the folder of a pre-training's sweep of this field.
        sweep: As for :func:`parse_sweep`.

    Raises:
        ConfigError: The field is none of the evaluation, nor were these values of it swept in ``model``.
    """
    field, values = split_sweep(sweep)
    if field in {own.name for own in dataclasses.fields(evaluation_of(suite))}:
        return parse_sweep(evaluation_of(suite), sweep)
    exports = {f"{field}-{value}": RunFolder(Path(model) / f"{field}-{value}").export for value in values}
    if missing := [str(export) for export in exports.values() if not export.is_dir()]:
        raise ConfigError(
            f"{field} is no field of {suite.name}, nor a finished sweep of the pre-training: there is no "
            f"{missing[0]}. Give the out of that sweep as model."
        )
    return {name: {"model": export} for name, export in exports.items()}
