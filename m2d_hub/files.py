"""Files on disk: whole or not there at all, hashed, locked between processes; and what a disk may refuse."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2d_hub.errors import DownloadError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
LEAST_FREE_BYTES = 1 << 16  # a disk with less is full
PARTIAL_SUFFIX = ".partial"  # of a name under which something is in work
_CONTROLS = {"Cc", "Zl", "Zp"}  # categories of Unicode, of what may break a line
# What a disk answers, as against a network.
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name ``path`` once it is whole and safe on disk.

    If writing fails, what was begun is removed and ``path`` stays as it was; a killed process leaves a file
    ``<path>.partial`` that the next one writes over.

    Yields:
        The path to write to, in the same folder, which is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if partial.is_symlink():  # it would be written through
        partial.unlink()
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        full = _full_disk(error, partial)
        partial.unlink(missing_ok=True)
        if full is not None:
            raise full from error
        raise


def _full_disk(error: BaseException, partial: Path) -> OSError | None:
    """The error that a full disk is, whatever a library made of it; None: it is something else.

    The system names no disk; torch, safetensors and numpy tell of a failed write in errors of their own,
    torch and numpy without saying why.
    """
    number = error.errno if isinstance(error, OSError) else None
    if not isinstance(error, Exception) or (number is not None and number not in FULL):
        return None
    is_full = number is not None or "No space left" in str(error)
    with contextlib.suppress(OSError):
        is_full = is_full or shutil.disk_usage(partial.parent).free < LEAST_FREE_BYTES
    text = f"no space left on the disk of {partial.parent}"
    return OSError(errno.ENOSPC, text) if is_full else None


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``folder`` once it is whole.

    If filling it fails, what was begun is removed and ``folder`` stays as it was.

    Yields:
        The path of an empty folder beside it.
    """
    partial, old = (folder.with_name(folder.name + suffix) for suffix in (PARTIAL_SUFFIX, ".old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        full = _full_disk(error, partial)
        shutil.rmtree(partial, ignore_errors=True)
        if full is not None:
            raise full from error
        raise


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON: null stands for a number that is not finite, for which JSON has no word."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    hash_into(digest, path)
    return digest.hexdigest()


def hash_into(digest: Any, path: Path) -> int:
    """Feeds a file to a hashlib object; returns its size in bytes."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        return file.tell()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file ``path``: other processes wait for it, and it is free again when its holder dies.

    Raises:
        DownloadError: The lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process that holds %s", path)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission in ``folder`` into a DownloadError with the way out."""
    way_out = "name another folder: load_model(..., cache_dir=FOLDER) or the environment variable HF_HOME."
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DownloadError(
                f"The disk of {folder} is full ({error}). Free some space, or {way_out}"
            ) from error
        if error.errno in FORBIDDEN:
            raise DownloadError(
                f"{folder} cannot be written ({error}). Change its permissions, or {way_out}"
            ) from error
        raise


def as_text(path: str) -> str:
    """A path as valid UTF-8 without line breaks or other control characters, which are escaped."""
    try:
        text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = path.encode("utf-8", "backslashreplace").decode()
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _CONTROLS else letter
        for letter in text
    )
