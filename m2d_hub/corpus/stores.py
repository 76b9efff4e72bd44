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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import url2pathname

from m2d_hub.audio.stored import FetchedFile, StoredFile
from m2d_hub.errors import AudioError, ConfigError, M2DError, reason_of
from m2d_hub.io import FULL, open_file, replacing

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<path>.*)", re.DOTALL)
_TIMEOUT_S = 30.0  # until a bucket must have answered for the first time
_BLOCK_BYTES = 1 << 18  # read at a time while headers are searched for
_LOOKUPS = 32  # concurrent requests
_MODIFIED_KEYS = ("LastModified", "mtime", "updated", "last_modified")  # names in s3fs, gcsfs and adlfs


@dataclass(frozen=True)
class StoreUrl:
    """URL of an object or a prefix."""

    scheme: str
    path: str  # bucket/key, without a trailing slash

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Suffix of the name, as of a path."""
        return Path(self.name).suffix

    @property
    def parent(self) -> StoreUrl:
        """The enclosing prefix."""
        return StoreUrl(self.scheme, self.path.rpartition("/")[0])

    def with_name(self, name: str) -> StoreUrl:
        """Return a sibling."""
        return self.parent / name

    def __truediv__(self, name: str) -> StoreUrl:
        return StoreUrl(self.scheme, f"{self.path}/{name}")

    @property
    def bucket(self) -> StoreUrl:
        """The bucket that contains it."""
        return StoreUrl(self.scheme, self.path.partition("/")[0])

    @property
    def fs(self) -> Any:
        """The fsspec file system.

        Raises:
            ConfigError: Its package is missing, the store does not answer, or the bucket does not exist.
        """
        return _file_system(self.bucket)


Location = Path | StoreUrl


@dataclass(frozen=True)
class UnusableFile(StoredFile):
    """A file that was named, but cannot be read."""

    name: str
    problem: str  # as a sentence
    size: int = -1
    modified_ns: int = 0

    def open(self) -> BinaryIO:
        raise AudioError(self.problem)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ObjectFile(StoredFile):
    """An object in a store."""

    url: StoreUrl
    size: int = -1
    modified_ns: int = 0

    def open(self) -> BinaryIO:
        with store_errors(self.url, AudioError):
            file: BinaryIO = self.url.fs.open(self.url.path, "rb", block_size=_BLOCK_BYTES)
            return file

    def fetched(self) -> StoredFile:
        with store_errors(self.url, AudioError), self.open() as content:
            copy = FetchedFile(str(self.url), self.size, self.modified_ns)
            copy.fill(content)
        return copy

    def __str__(self) -> str:
        return str(self.url)


def to_location(given: str | os.PathLike[str]) -> Location:
    """Return the path or URL that a user gave; ``file://`` is a path.

    Raises:
        ConfigError: The URL has an unknown scheme or no bucket.
    """
    match = _URL.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        return Path(given)
    scheme = match["scheme"].lower()
    if scheme == "file":
        return Path(url2pathname(match["path"]))
    if scheme not in _PACKAGES:
        allowed = ", ".join(f"{known}://" for known in (*_PACKAGES, "file"))
        raise ConfigError(f"{given}: {scheme}:// is not supported; give a path, or a URL with {allowed}.")
    path = match["path"].rstrip("/")
    if not path or path.startswith("/"):
        raise ConfigError(f"{given} has no bucket; give {scheme}://BUCKET/PREFIX.")
    return StoreUrl(scheme, path)


def find_object(url: StoreUrl) -> ObjectFile:
    """Look up an object; its size is -1 if it does not exist.

    Raises:
        ConfigError: The store cannot be used.
    """
    with store_errors(url):
        try:
            info = url.fs.info(url.path)
        except FileNotFoundError:
            return ObjectFile(url)
    return _object_file(url, info) if info["type"] == "file" else ObjectFile(url)


def find_objects(urls: Sequence[StoreUrl]) -> list[StoredFile]:
    """Look up many objects; those that cannot be read are unusable files.

    Raises:
        ConfigError: A store cannot be reached.
    """
    missing: dict[StoreUrl, str] = {}  # buckets

    def find(url: StoreUrl) -> StoredFile:
        try:
            return UnusableFile(str(url), missing[url.bucket]) if url.bucket in missing else find_object(url)
        except ConfigError as error:
            if _is_unreachable(error.__cause__):
                raise
            if "the bucket does not exist" in str(error):
                missing[url.bucket] = str(error)
            return UnusableFile(str(url), str(error))

    with ThreadPoolExecutor(_LOOKUPS) as pool:
        return list(pool.map(find, urls))


def list_objects(prefix: StoreUrl) -> list[ObjectFile]:
    """Return the objects below a prefix at any depth, sorted.

    Raises:
        ConfigError: The store cannot be used.
    """
    with store_errors(prefix):
        try:
            found = prefix.fs.find(prefix.path, detail=True)
        except FileNotFoundError:
            return []
    return [
        _object_file(StoreUrl(prefix.scheme, path), info)
        for path, info in sorted(found.items())
        if path.startswith(prefix.path + "/")
    ]


def names_in(folder: Location) -> list[str]:
    """Return the names of what is in a folder or below a prefix, sorted; none if it does not exist."""
    if isinstance(folder, Path):
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    with store_errors(folder):
        try:
            found = folder.fs.ls(folder.path, detail=False)
        except FileNotFoundError:
            return []
    below = [path.rstrip("/").removeprefix(folder.path) for path in found]
    return sorted(path[1:] for path in below if path.startswith("/") and path != "/")


def exists(location: Location) -> bool:
    """Return whether there is such a file, folder, link or object."""
    return os.path.lexists(location) if isinstance(location, Path) else find_object(location).size >= 0


@contextlib.contextmanager
def opened(location: Location) -> Iterator[Path | BinaryIO]:
    """Yield a path, which must be a folder or a readable file, as it is, and an object as an open file."""
    if isinstance(location, Path):
        if not location.is_dir():
            open_file(location, "embeddings", ConfigError).close()
        yield location
        return
    with store_errors(location):
        file = location.fs.open(location.path, "rb")
    with file:
        yield file


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


def remove(location: Location) -> None:
    """Remove a file or an object, if it exists."""
    if isinstance(location, Path):
        location.unlink(missing_ok=True)
        return
    with store_errors(location), contextlib.suppress(FileNotFoundError):
        location.fs.rm_file(location.path)


@contextlib.contextmanager
def store_errors(url: StoreUrl, failure: type[M2DError] = ConfigError) -> Iterator[None]:
    """Raise what a store or its client raises as one error type; a full local disk stays an OSError."""
    try:
        yield
    except M2DError as error:
        raise failure(str(error)) from error
    except FileNotFoundError as error:
        raise failure(f"{url} does not exist.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        reason = reason_of(error)
        if _is_unreachable(error):
            problem = "cannot be reached"
            hint = "Check the network and the store's endpoint (for s3, AWS_ENDPOINT_URL)."
        elif isinstance(error, PermissionError) or "redentials" in reason:
            problem = "cannot be used with these credentials"
            hint = "For s3, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        else:
            problem, hint = "cannot be used", ""
        raise failure(f"{url} {problem} ({reason}). {hint}".rstrip()) from error


def _is_unreachable(error: BaseException | None) -> bool:
    text = f"{type(error).__name__} {error}"
    return isinstance(error, TimeoutError) or re.search(r"[Cc]onnect|[Tt]imed? ?out", text) is not None


def _object_file(url: StoreUrl, info: dict[str, Any]) -> ObjectFile:
    modified = next((info[key] for key in _MODIFIED_KEYS if info.get(key)), 0)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified.replace("Z", "+00:00"))
    seconds = modified.timestamp() if isinstance(modified, datetime) else modified
    return ObjectFile(url, info["size"], int(seconds) * 1_000_000_000)  # requests differ below a second


@functools.cache
def _file_system(bucket: StoreUrl) -> Any:
    import fsspec
    from fsspec.asyn import sync

    try:
        fs = fsspec.filesystem(bucket.scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = _PACKAGES[bucket.scheme]
        install = "'m2d-hub[s3]'" if bucket.scheme == "s3" else package
        raise ConfigError(f"{bucket.scheme}:// needs {package}: pip install {install}.") from error
    try:
        with store_errors(bucket):
            sync(fs.loop, fs._info, bucket.path, timeout=_TIMEOUT_S)
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(f"{bucket} cannot be used: the bucket does not exist.") from error.__cause__
        if not isinstance(error.__cause__, PermissionError):  # reading objects may be allowed all the same
            raise
    return fs
