"""Atomic writes, locks, hashes, untrusted files and optional imports."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from m2d_hub.errors import ConfigError, DownloadError, M2DError, reason_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"  # of unfinished files and folders
FULL = {errno.ENOSPC, errno.EDQUOT}
MACHINE = FULL | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
# Of flock, on network file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM}
_MIN_FREE_BYTES = 1 << 16  # a disk with less counts as full
_MAX_ARRAY_BYTES = 1 << 40
_MAX_NAME_LENGTH = 200  # characters of a path in a message
_LINE_BREAKING = {"Cc", "Zl", "Zp"}  # Unicode categories


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file that replaces ``path`` only when it is complete and synced to disk.

    If writing fails, the unfinished file is removed and ``path`` is unchanged. A killed process leaves
    ``<path>.partial``, which the next write overwrites.

    Yields:
        The path to write to, in the same folder. Missing parent folders are created.

    Raises:
        OSError: The disk is full; the message names the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if partial.is_symlink():  # writing would follow the link
        partial.unlink()
    try:
        with _naming_full_disk(path.parent):
            yield partial
            _sync(partial)
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:  # some network file systems cannot sync
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` only when it is filled; see :func:`replacing`."""
    partial, old = (folder.with_name(folder.name + suffix) for suffix in (PARTIAL_SUFFIX, ".old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _naming_full_disk(partial.parent):
            yield partial
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def _naming_full_disk(folder: Path) -> Iterator[None]:
    """Raise an error that names the full disk, whichever exception reports it.

    torch, safetensors and numpy report a failed write with exceptions of their own; torch and numpy omit the
    cause, so the free space is checked as well.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        is_full = number in FULL or "No space left" in str(error)
        if number is None and not is_full:
            is_full = shutil.disk_usage(folder).free < _MIN_FREE_BYTES
        if is_full:
            raise OSError(errno.ENOSPC, f"no space left on the disk of {folder}") from error
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; other processes wait, and the lock is released if its holder dies."""
    from filelock import FileLock

    lock = FileLock(path)
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_output(path: Path, output: object, wait_s: float = 0.0) -> BaseFileLock:
    """Take the lock file ``path``, so that one run at a time writes ``output``.

    File systems without locks are used with a warning. Missing parent folders are created.

    Args:
        path: The lock file.
        output: What messages name.
        wait_s: How long to wait for another run.

    Returns:
        The lock, to be released.

    Raises:
        ConfigError: Another run is writing the output.
        OSError: The lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise ConfigError(f"another run is writing {output}; wait for it, or give another output.") from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning("the disk of %s has no locks (%s); let only one run write it.", output, error)
    return lock


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Raise a full disk or a missing permission in ``folder`` as a DownloadError with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL | FORBIDDEN:
            raise
        problem = f"The disk of {folder} is full" if error.errno in FULL else f"{folder} cannot be written"
        raise DownloadError(
            f"{problem} ({error}). Choose another folder: load_model(..., cache_dir=FOLDER) or the "
            "environment variable HF_HOME."
        ) from error


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    hash_into(digest, path)
    return digest.hexdigest()


def hash_into(digest: Any, path: Path) -> None:
    """Feed a file to a hashlib object."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return strict JSON, with null for NaN and infinity, which JSON cannot represent."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(inner) for key, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def as_text(path: str) -> str:
    """Return a path as valid UTF-8 on one line, with control characters escaped."""
    try:
        text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = path.encode("utf-8", "backslashreplace").decode()
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _LINE_BREAKING else char
        for char in text
    )


def as_cell(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


@contextlib.contextmanager
def reading(name: object, kind: str, hint: str, failure: type[M2DError]) -> Iterator[None]:
    """Parse data that may be damaged or hostile: any failure is raised as a ``failure``.

    Errors of this package pass unchanged, and those of a full disk, which is not the fault of the data. The
    message has ``name``, the ``kind`` of data with its article, and the ``hint``, a sentence.
    """
    try:
        yield
    except M2DError:
        raise
    except Exception as error:
        if is_machine_fault(error):
            raise
        raise failure(f"{name} cannot be read as {kind} ({reason_of(error)}). {hint}") from error


def is_machine_fault(error: BaseException) -> bool:
    """Return whether an error is a fault of the machine, such as a full disk, and not of what was read."""
    if isinstance(error, MemoryError):
        # FFmpeg's ENOMEM, and an array that no machine can hold, mean a size that the file states.
        itemsize = getattr(getattr(error, "dtype", None), "itemsize", 0)
        claimed_bytes = math.prod(getattr(error, "shape", ())) * itemsize
        return not hasattr(error, "errno") and claimed_bytes < _MAX_ARRAY_BYTES
    return isinstance(error, OSError) and error.errno in MACHINE


@contextlib.contextmanager
def reading_file(
    path: str | os.PathLike[str], kind: str, hint: str, failure: type[M2DError]
) -> Iterator[None]:
    """Like :func:`reading`, for a file on disk, which must exist and be a regular file."""
    open_file(path, kind, failure).close()
    with reading(path, kind, hint, failure):
        yield


def open_file(path: str | os.PathLike[str], kind: str, failure: type[M2DError]) -> BinaryIO:
    """Open a regular file for reading bytes, or raise a ``failure``.

    Pipes and devices are refused, since reading may block forever.
    """
    problem = None
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
        problem = f"is a pipe or a device, not {kind}; write its contents to a file"
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # raises if the folder is not readable
            problem = f"is a folder, not {kind}"
    except (FileNotFoundError, NotADirectoryError):
        problem = f"does not exist; give {kind}"
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if is_machine_fault(error):
            raise
        problem = f"cannot be opened ({getattr(error, 'strerror', error)}); check its name and permissions"
    raise failure(f"{str(path)[:_MAX_NAME_LENGTH]} {problem}.")


@contextlib.contextmanager
def importing(
    packages: str, by: str, extra: str, hint: str = "", failure: type[M2DError] = ConfigError
) -> Iterator[None]:
    """Import optional dependencies, with one message when they are missing or fail to import.

    Args:
        packages: The imported packages under the names that users know: "scikit-learn".
        by: The feature that needs them, as the start of a sentence: "ONNX export".
        extra: The extra of this package that installs them.
        hint: An alternative that works without them, as a sentence.
        failure: The error type to raise; it states the reason unless the package is just missing.
    """
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: a missing system library
        need = f"{by} needs {packages}"
        if not isinstance(error, ModuleNotFoundError):
            need += f", which cannot be imported ({reason_of(error)})"
        raise failure(f"{need}: pip install 'm2d-hub[{extra}]'. {hint}".rstrip()) from error


def require_extra(extra: str, by: str) -> None:
    """Check that every package that only ``extra`` installs is there, without importing any.

    Raises:
        ConfigError: Packages are missing; all of them are named.
    """
    from packaging.requirements import Requirement

    missing = []
    with contextlib.suppress(PackageNotFoundError):  # this package is not installed itself
        for need in map(Requirement, requires("m2d-hub") or ()):
            marker = need.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                missing += [] if _is_installed(need.name) else [need.name]
    if missing:
        raise ConfigError(f"{by} needs {', '.join(missing)}: pip install 'm2d-hub[{extra}]'.")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Create ordinary float32 CPU tensors, whatever inference mode, device or dtype the caller has set."""
    import torch

    dtype = torch.get_default_dtype()
    if dtype is not torch.float32:  # a process-wide setting: change it only if necessary
        torch.set_default_dtype(torch.float32)
    try:
        on_cpu = torch.device("cpu")
        is_default = torch.get_default_device() == on_cpu  # setting it slows down every call of torch
        with torch.inference_mode(mode=False), contextlib.nullcontext() if is_default else on_cpu:
            yield
    finally:
        if dtype is not torch.float32:
            torch.set_default_dtype(dtype)
