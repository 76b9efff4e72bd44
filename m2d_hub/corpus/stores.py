"""Object stores by URL: what ``s3://bucket/key`` means, and what a store answers when it cannot give it.

All goes through pyarrow's file systems, which take credentials, region and endpoint as the store's own tools
do: ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL`` and so on, or options at a URL's end
(``?endpoint_override=host:9000&scheme=http``).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import url2pathname

from m2d_hub.audio.stored import FetchedFile, StoredFile
from m2d_hub.errors import AudioError, ConfigError, M2DError
from m2d_hub.io import importing

SCHEMES = ("s3", "gs", "abfs")
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<path>.*?)(?P<options>\?[A-Za-z_]+=.*)?", re.DOTALL
)
_BUFFER_BYTES = 1 << 18  # read at a time where headers are looked for
_ANSWERS = {  # by what a store's error says: the reason, and what to do
    r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist": "cannot be used: there is no such bucket.",
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE|MISSING_AUTHENTICATION|UNRECOGNIZED_CLIENT|"
    r"[Cc]redentials|Forbidden|HTTP status 40[13]|UNAUTHORIZED": (
        "cannot be used: the store refuses these credentials, or there are none. Give some that may, for s3 "
        "by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    ),
    r"NETWORK_CONNECTION|curlCode|[Tt]imeout|TIMEOUT": (
        "cannot be reached: check the network and, if it is not the provider's own, the store's address (for "
        "s3 AWS_ENDPOINT_URL)."
    ),
}


@dataclass(frozen=True)
class StoreUrl:
    """A place in a store: an object, a prefix, or nothing yet."""

    scheme: str
    path: str  # bucket/key, as it is written, without a slash at its end
    options: str = ""  # "?…" of the file system

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def name(self) -> str:
        """What is behind the last slash."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """As of a path."""
        return Path(self.name).suffix

    @property
    def parent(self) -> StoreUrl:
        """The prefix that it is in."""
        return StoreUrl(self.scheme, self.path.rpartition("/")[0], self.options)

    def with_name(self, name: str) -> StoreUrl:
        """A place beside this one."""
        return self.parent.child(name)

    def child(self, name: str) -> StoreUrl:
        """A place below this one."""
        return StoreUrl(self.scheme, f"{self.path}/{name}", self.options)

    @property
    def system(self) -> Any:
        """The file system that it is in, of pyarrow; one for all places of a bucket."""
        return _file_system(self.scheme, self.path.partition("/")[0], self.options)

    def look(self) -> StoreFile | None:
        """The object there; None: there is none, but perhaps a prefix.

        Raises:
            ConfigError: The store cannot be used, or there is no such bucket.
        """
        with store_errors(self):
            bucket = self.path.partition("/")[0]
            [info, holder] = self.system.get_file_info([self.path, bucket])
        if holder.type.name == "NotFound":
            raise ConfigError(f"{self} cannot be used: there is no such bucket.")
        return StoreFile(self, info.size, info.mtime_ns) if info.is_file else None

    def walk(self) -> list[StoreFile]:
        """Objects below the prefix, at any depth, but hidden ones, by name.

        Raises:
            ConfigError: The store cannot be used.
        """
        with store_errors(self):
            found = self.list(recursive=True)
        files = [info for info in found if info.is_file and not info.base_name.startswith(".")]
        return [
            StoreFile(StoreUrl(self.scheme, info.path, self.options), info.size, info.mtime_ns)
            for info in sorted(files, key=lambda info: info.path)
        ]

    def list(self, recursive: bool = False) -> Any:
        """What is below the prefix, as pyarrow tells it; nothing where there is none."""
        from pyarrow import fs

        return self.system.get_file_info(
            fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        )


@dataclass(frozen=True)
class StoreFile(StoredFile):
    """An object of a store; its size and time are 0 where it is not there."""

    url: StoreUrl
    size: int = 0
    modified_ns: int = 0

    def open(self) -> BinaryIO:
        with store_errors(self.url, AudioError):
            return io.BufferedReader(self.url.system.open_input_file(self.url.path), _BUFFER_BYTES)

    def fetched(self) -> StoredFile:
        copy = FetchedFile(str(self.url), self.size, self.modified_ns)
        with store_errors(self.url, AudioError), self.url.system.open_input_stream(self.url.path) as content:
            copy.fill(content)
        return copy

    def __str__(self) -> str:
        return str(self.url)


def place_of(given: str | os.PathLike[str]) -> Path | StoreUrl:
    """What a path or a URL means; ``file://`` is a path.

    Raises:
        ConfigError: A URL of a kind that is not read, or without a bucket.
    """
    match = _URL.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        return Path(given)
    scheme = match["scheme"].lower()
    if scheme == "file":
        return Path(url2pathname(match["path"]))
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{known}://" for known in (*SCHEMES, "file"))
        raise ConfigError(f"{given}: URLs of the kind {scheme}:// are not read; give a path, or {allowed}.")
    path = match["path"].rstrip("/")
    if not path or path.startswith("/"):
        raise ConfigError(f"{given} names no bucket: give {scheme}://BUCKET/PREFIX.")
    return StoreUrl(scheme, path, match["options"] or "")


def look_up(urls: list[StoreUrl]) -> list[StoreFile]:
    """Objects, asked for together; those that are not there have no size.

    Raises:
        ConfigError: A store cannot be used.
    """
    found: dict[StoreUrl, StoreFile] = {}
    by_system: dict[tuple[str, str, str], list[StoreUrl]] = defaultdict(list)
    for url in urls:
        by_system[url.scheme, url.path.partition("/")[0], url.options].append(url)
    for (scheme, bucket, options), group in by_system.items():
        StoreUrl(scheme, bucket, options).look()  # tells that there is no such bucket
        with store_errors(group[0]):
            for url, info in zip(
                group, group[0].system.get_file_info([url.path for url in group]), strict=True
            ):
                found[url] = StoreFile(url, info.size, info.mtime_ns) if info.is_file else StoreFile(url)
    return [found[url] for url in urls]


@contextlib.contextmanager
def store_errors(url: StoreUrl, failure: type[M2DError] = ConfigError) -> Iterator[None]:
    """Turns what a store or its file system raises into a sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise failure(f"{url} does not exist.") from error
    except (OSError, ValueError, NotImplementedError) as error:
        text = str(error)
        for pattern, answer in _ANSWERS.items():
            if re.search(pattern, text):
                raise failure(f"{url} {answer}") from error
        raise failure(f"{url} cannot be used ({text.strip().rstrip('.')}).") from error


@functools.cache
def _file_system(scheme: str, bucket: str, options: str) -> Any:
    with importing("pyarrow", f"{scheme}://", "s3"):
        from pyarrow import fs
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}/{options}")[0]
