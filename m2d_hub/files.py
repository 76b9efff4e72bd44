"""The cache's files: hashes, locks between processes, and what a disk may refuse."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2d_hub.errors import DownloadError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
# What a disk answers, as against a network.
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


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
