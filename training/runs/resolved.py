"""The resolved configuration of a run, written before it starts and compared when it goes on."""

from __future__ import annotations

import json
from typing import Any

from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import reading_file, replacing

from .folder import RunFolder


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
        old = read_config(folder)
        known = {key: value for key, value in run.items() if key in old}
        _require_same({key: old[key] for key in known}, known, folder)
        changed = {key: value for key, value in config.items() if key not in may_change}
        _require_same({key: old["config"].get(key) for key in changed}, changed, folder)
    text = json.dumps({**head, **run, "config": config}, indent=2)
    with replacing(folder.config_file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_config(folder: RunFolder) -> dict[str, Any]:
    """What an earlier part of the run wrote.

    Raises:
        CheckpointError: The file is damaged.
    """
    way_out = "Delete it: it is then written anew, from the settings that you give."
    with reading_file(folder.config_file, "a run's configuration", way_out, CheckpointError):
        values: dict[str, Any] = json.loads(folder.config_file.read_text(encoding="utf-8"))
        if not isinstance(values["config"], dict):
            raise TypeError("its 'config' is no object")
    return values


def _require_same(old: dict[str, Any], new: dict[str, Any], folder: RunFolder) -> None:
    different = [f"{key} {old[key]!r} there, {new[key]!r} now" for key in new if old[key] != new[key]]
    if different:
        raise ConfigError(
            f"{folder.root} holds a run of another configuration: {'; '.join(different)}. "
            "Give the same settings to resume it, or another output."
        )
