"""Object stores by URL (``s3://bucket/key``), read and written through fsspec.

Credentials, region and endpoint come from the environment and the configuration files of each provider's
tools (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...), never from a URL.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from m2d_hub.audio.stored import FetchedFile, StoredFile
from m2d_hub.errors import AudioError, ConfigError, M2DError, reason_of
from m2d_hub.io import is_machine_fault, open_file, replacing

_SCHEMES = ("s3", "gs", "abfs")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<path>.*)", re.DOTALL)
_TIMEOUT_S = 60.0  # until a store must have answered; gcsfs would try again for 10 minutes and more
_BLOCK_BYTES = 1 << 18  # read at a time while headers are searched for
_MODIFIED_KEYS = ("LastModified", "mtime", "last_modified")  # names in s3fs, gcsfs and adlfs


@dataclass(frozen=True)
class StorePath(StoredFile):
    """URL of an object or a prefix, with the methods of :class:`pathlib.Path` that outputs use."""

    scheme: str
    path: str  # bucket/key, without a trailing slash
    size: int = field(default=-1, compare=False)  # bytes; -1: not looked up, or it does not exist
    modified_ns: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    as_posix = __str__

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePath(self.name).suffix

    @property
    def parent(self) -> StorePath:
        return StorePath(self.scheme, self.path.rpartition("/")[0])

    def with_name(self, name: str) -> StorePath:
        return self.parent / name

    def __truediv__(self, name: str | PurePath) -> StorePath:
        return StorePath(self.scheme, f"{self.path}/{PurePath(name).as_posix()}")

    def relative_to(self, prefix: StorePath) -> PurePath:
        return PurePath(self.path[len(prefix.path) + 1 :])

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return _file_system(self.scheme)

    def open(self) -> BinaryIO:
        with store_errors(self, AudioError):
            file: BinaryIO = self.fs.open(self.path, "rb", block_size=_BLOCK_BYTES)
            return file

    def fetched(self) -> StoredFile:
        with store_errors(self, AudioError), self.open() as content:
            copy = FetchedFile(str(self), self.size, self.modified_ns)
            copy.fill(content)
        return copy

    def exists(self) -> bool:
        return self.looked_up().size >= 0

    def unlink(self, missing_ok: bool = False) -> None:
        with store_errors(self), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path)

    def looked_up(self) -> StorePath:
        """Return the path with the size and time of its object, if there is one."""
        with store_errors(self):
            try:
                return self._with(self.path, self.fs.info(self.path, timeout=_TIMEOUT_S))
            except FileNotFoundError:
                return replace(self, size=-1)

    def objects(self) -> list[StorePath]:
        """Return the objects below a prefix at any depth, sorted."""
        with store_errors(self):
            try:
                found = self.fs.find(self.path, detail=True)
            except FileNotFoundError:
                return []
        below = [name for name in sorted(found) if name.startswith(self.path + "/")]
        return [self._with(name, found[name]) for name in below]

    def _with(self, path: str, info: dict[str, Any]) -> StorePath:
        if info["type"] != "file":
            return StorePath(self.scheme, path)
        modified = next((int(info[key].timestamp()) for key in _MODIFIED_KEYS if key in info), 0)
        return StorePath(self.scheme, path, info["size"], modified * 1_000_000_000)


Location = Path | StorePath


def to_location(given: str | os.PathLike[str]) -> Location:
    """Return the path or URL that a user gave.

    Raises:
        ConfigError: The URL has an unknown scheme or no bucket.
    """
    match = _URL.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        return Path(given)
    scheme, path = match["scheme"].lower(), match["path"].rstrip("/")
    if scheme not in _SCHEMES:
        allowed = ", ".join(f"{known}://" for known in _SCHEMES)
        raise ConfigError(f"{given}: {scheme}:// is not supported; give a path, or a URL with {allowed}.")
    if not path or path.startswith("/"):
        raise ConfigError(f"{given} has no bucket; give {scheme}://BUCKET/PREFIX.")
    return StorePath(scheme, path)


def looked_up(location: Location) -> Location:
    """Return a location with the size of its object; a path on disk as it is."""
    return location.looked_up() if isinstance(location, StorePath) else location


def names_in(folder: Location) -> list[str]:
    """Return the names of what is in a folder or below a prefix, sorted; none if it does not exist."""
    if isinstance(folder, Path):
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    with store_errors(folder):
        try:
            found = folder.fs.ls(folder.path, detail=False, timeout=_TIMEOUT_S)
        except FileNotFoundError:
            return []
    below = [path.rstrip("/") for path in found]
    return sorted(PurePath(path).name for path in below if path.startswith(folder.path + "/"))


def open_location(location: Location, kind: str = "embeddings") -> BinaryIO:
    """Open a regular file or an object for reading."""
    if isinstance(location, Path):
        return open_file(location, kind, ConfigError)
    with store_errors(location):
        return location.open()


@contextlib.contextmanager
def written(location: Location) -> Iterator[Path]:
    """Yield a path to write to; what was written becomes the file or object once it is complete.

    Raises:
        ConfigError: The store cannot be used.
        OSError: A disk is full.
    """
    if isinstance(location, Path):
        with replacing(location) as partial:
            yield partial
        return
    with tempfile.TemporaryDirectory(prefix="m2d-hub-") as folder:
        partial = Path(folder) / location.name
        yield partial
        with store_errors(location):  # objects are uploaded as a whole; an interrupted upload changes nothing
            location.fs.put_file(str(partial), location.path)


@contextlib.contextmanager
def store_errors(url: StorePath, failure: type[M2DError] = ConfigError) -> Iterator[None]:
    """Raise what a store or its client raises as one error type; faults of this machine stay as they are."""
    try:
        yield
    except M2DError as error:
        raise failure(str(error)) from error
    except FileNotFoundError as error:
        raise failure(f"{url} does not exist.") from error
    except Exception as error:
        if is_machine_fault(error):
            raise
        raise failure(
            f"{url} cannot be used ({reason_of(error)}). Check the network, the endpoint and the credentials "
            "(for s3, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)."
        ) from error


@functools.cache
def _file_system(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:  # which names the package
        raise ConfigError(
            f"{scheme}:// cannot be used ({error}). For s3, pip install 'm2d-hub[s3]'."
        ) from error
