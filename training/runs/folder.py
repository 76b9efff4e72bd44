"""The folder of a run: its files, its lock, and whether it holds the same run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import lock_output, reading_file, replacing

from .devices import is_first_process

if TYPE_CHECKING:
    from m2d_hub.audio import AudioPart

LOCK_NAME = ".lock"
LOCK_WAIT_S = 10.0  # workers of a run that was killed end some seconds after it


class RunFolder:
    """Paths of a run's files."""

    def __init__(self, root: Path):
        self.root = root
        self.config_file = root / "config.json"  # resolved configuration
        self.metrics_file = root / "metrics.jsonl"  # one JSON line per step
        self.checkpoints = root / "checkpoints"  # folder of step-….pt
        self.tensorboard = root / "tensorboard"
        self.plots = root / "plots"  # curves as PNG
        self.export = root / "export"  # for m2d_hub.load_model


def make_folder(folder: Path) -> None:
    """Create the folder that a command writes into.

    Raises:
        ConfigError: A file has that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"out must be a folder, but {folder} is a file or lies in one.") from error


@contextlib.contextmanager
def one_run_in(folder: Path) -> Iterator[None]:
    """Create a folder and keep other runs out of it; of a run's processes, the first one does.

    Raises:
        ConfigError: Another run works in it, or it is not a folder.
    """
    if not is_first_process():
        yield
        return
    make_folder(folder)
    lock = lock_output(folder / LOCK_NAME, folder, LOCK_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def same_or_refuse(
    folder: RunFolder,
    run: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    may_change: AbstractSet[str] = frozenset(),
) -> None:
    """Write ``config.json`` of a new run, or check that the folder holds the same run.

    Args:
        folder: The run.
        run: Values that must be the same: ``config``, the settings; and further ones, such as hashes of the
            clips and of the weights. Those that an earlier release did not write are not compared.
        notes: Values that are only recorded.
        may_change: Settings that change no weights.

    Raises:
        ConfigError: The folder holds another run.
        CheckpointError: ``config.json`` is damaged.
    """
    run = json.loads(json.dumps(run))
    if folder.config_file.exists():
        old = read_config(folder)
        pairs = {key: (old[key], value) for key, value in run.items() if key in old and key != "config"}
        for name, value in run["config"].items():
            if name not in may_change:
                pairs[name] = (old["config"].get(name), value)
        if different := [f"{key} was {was!r}, is {now!r}" for key, (was, now) in pairs.items() if was != now]:
            raise ConfigError(
                f"{folder.root} holds another run: {'; '.join(different)}. Give the same settings and data "
                "to resume it, or another out."
            )
    with replacing(folder.config_file) as partial:
        partial.write_text(json.dumps({**(notes or {}), **run}, indent=2) + "\n", encoding="utf-8")


def read_config(folder: RunFolder) -> dict[str, Any]:
    """Return what :func:`same_or_refuse` wrote.

    Raises:
        CheckpointError: The file is damaged.
    """
    hint = "Delete it: it is written again from the settings that you give."
    with reading_file(folder.config_file, "a run's configuration", hint, CheckpointError):
        values: dict[str, Any] = json.loads(folder.config_file.read_text(encoding="utf-8"))
        if not isinstance(values["config"], dict):
            raise TypeError("its 'config' is not an object")
    return values


def clips_digest(files: Sequence[str | AudioPart], *columns: Sequence[str]) -> str:
    """Return a hash of a list of clips, which is the same wherever their common folder lies.

    Args:
        files: Paths, or parts of files.
        columns: Further values of each clip, such as its label.
    """
    from m2d_hub.audio import AudioPart

    parts = [file if isinstance(file, AudioPart) else AudioPart(file) for file in files]
    folders = {os.path.dirname(os.path.abspath(part.path)) for part in parts}
    root = os.path.commonpath(folders) if folders else ""
    digest = hashlib.sha256()
    for part, *values in zip(parts, *columns, strict=True):
        name = os.path.relpath(part.path, root).replace(os.sep, "/")
        row = json.dumps([name, part.start_s or 0, part.end_s, *values])
        digest.update(row.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
