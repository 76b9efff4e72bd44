"""The job that writes an output: its settings, and a lock that lets one run at a time write."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from m2d_hub.errors import ConfigError
from m2d_hub.io import replacing

LOCK = ".lock"


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a job as JSON."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_settings(out: object, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses to go on with other settings than an output was begun with.

    Raises:
        ConfigError: The message tells each difference, and what to do.
    """
    if begun != wanted:
        differing = [key for key in wanted if begun.get(key) != wanted[key]]
        changes = "; ".join(f"{key} {begun.get(key)!r}, now {wanted[key]!r}" for key in differing)
        raise ConfigError(
            f"{out} was begun with other settings ({changes}). Go on with them, give another output, "
            "or delete what is there to begin anew."
        )


@contextlib.contextmanager
def lock_kept(folder: Path, out: object) -> Iterator[filelock.BaseFileLock]:
    """Takes the lock of an output, which is kept unless opening the output fails."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ConfigError(f"another run is writing {out}; wait for it, or give another output.") from error
    try:
        yield lock
    except BaseException:
        lock.release()
        if is_new:
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is no longer empty
                folder.rmdir()
        raise
