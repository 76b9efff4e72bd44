"""Memory of downloaded weights: hashes, where they came from, whether they are still the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from m2d_hub.errors import ChecksumError
from m2d_hub.io import reading_file, replacing, sha256_of
from m2d_hub.pretrained.registry import ModelInfo

ORIGIN_FILE = "origin.json"


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Records where a folder's files came from, with size, time of change and sha256 of each."""
    files = {
        path.name: {"sha256": sha256_of(path), "stamp": _stamp(path)}
        for path in sorted(folder.iterdir())
        if path.name != ORIGIN_FILE
    }
    with replacing(folder / ORIGIN_FILE) as partial:
        partial.write_text(json.dumps(origin | {"files": files}, indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> dict[str, Any]:
    """The record that :func:`write_origin` made.

    Raises:
        ChecksumError: It is damaged.
    """
    path = folder / ORIGIN_FILE
    again = f"Delete {folder} and load the model again."
    with reading_file(path, "the record of a download", again, ChecksumError):
        origin: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(origin["zip_bytes"], int):
            raise ValueError("no size of the zip")
        for recorded in origin["files"].values():
            recorded["stamp"], recorded["sha256"]
    return origin


def verify(folder: Path) -> None:
    """Compares each file with its record: by size and time of change, and by sha256 where these differ.

    Raises:
        ChecksumError: A file is missing or has changed.
    """
    origin = read_origin(folder)
    touched = False
    for name, recorded in origin["files"].items():
        path = folder / name
        if not path.is_file():
            raise ChecksumError(f"{path} is missing. Delete {folder} and load the model again.")
        if _stamp(path) == recorded["stamp"]:
            continue
        touched = True
        digest = sha256_of(path)
        if digest != recorded["sha256"]:
            raise ChecksumError(
                f"{path} has changed since it was written: its sha256 is {digest}, recorded is "
                f"{recorded['sha256']}. Delete {folder} and load the model again."
            )
    if touched:  # copied from elsewhere: hash once, not at every load, unless the cache is read-only
        with contextlib.suppress(OSError):
            write_origin(folder, {key: value for key, value in origin.items() if key != "files"})


def check_release_hash(info: ModelInfo, root: Path, zip_path: Path, digest: str) -> None:
    """Compares a zip's sha256 with the registry's, or else with that of its first download.

    Raises:
        ChecksumError: They differ.
    """
    if info.sha256 not in (None, digest):
        raise ChecksumError(
            f"{zip_path} is not the published file: its sha256 is {digest}, announced is {info.sha256}. "
            "Fetch it from its publisher again."
        )
    recorded = recorded_hash(info, root)
    if recorded not in (None, digest):
        raise ChecksumError(
            f"{zip_path} is not the file it was at the first download: its sha256 is {digest}, recorded is "
            f"{recorded}. If its publisher replaced it and you trust the new one, delete "
            f"{_hash_path(info, root)} and load the model again."
        )


def record_hash(info: ModelInfo, root: Path, digest: str) -> None:
    """Remembers a zip's sha256, apart from the weights, in the format of ``sha256sum``."""
    path = _hash_path(info, root)
    with replacing(path) as partial:
        partial.write_text(f"{digest}  {info.folder}.zip\n", encoding="utf-8")


def recorded_hash(info: ModelInfo, root: Path) -> str | None:
    """The zip's sha256 at its first download into this cache, or None."""
    path = _hash_path(info, root)
    words = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return words[0] if words else None


def _hash_path(info: ModelInfo, root: Path) -> Path:
    return root / "hashes" / f"{info.folder}.zip.sha256"


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
