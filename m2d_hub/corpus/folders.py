"""Where the files of an output lie, on a disk or in a store: each is there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from m2d_hub.corpus.output_job import LOCK, lock_kept
from m2d_hub.corpus.stores import StoreUrl, store_errors
from m2d_hub.io import replacing

_COPIED_BYTES = 8 << 20  # at a time


class Lock(Protocol):
    """What keeps others from writing."""

    def release(self) -> None:
        """Lets them."""


class Folder(ABC):
    """A folder, which need not be there yet. Errors of a store are ConfigErrors, those of a disk OSErrors."""

    @property
    @abstractmethod
    def is_other(self) -> bool:
        """Whether a file or a link is in its place."""

    @abstractmethod
    def names(self) -> list[str]:
        """Of what is in it, sorted."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether something of that name is in it."""

    @abstractmethod
    def readable(self, name: str) -> Any:
        """A file of it as pyarrow's readers take it; of a disk, its path."""

    @abstractmethod
    def first_bytes(self, name: str, count: int) -> bytes | None:
        """How a file begins; None: nothing has that name, none: it is no file."""

    @abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write to; what is written becomes the file ``name`` once it is whole."""

    @abstractmethod
    def append(self, name: str, content: bytes) -> None:
        """Adds to a file; where that cannot be done, :meth:`flush` writes all that was added."""

    def flush(self) -> None:  # noqa: B027 - a disk has nothing to do
        """Writes what was added to files."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    @abstractmethod
    def remove_all(self) -> None:
        """Removes the folder with all that is in it."""

    @abstractmethod
    def remove_empty(self) -> None:
        """Removes the folder, and its lock, where nothing else is in it."""

    @abstractmethod
    def locked(self, out: object) -> AbstractContextManager[Lock]:
        """Makes the folder, and its lock, which is kept unless the block fails; stores have none."""


class NoLock:
    """The lock of a store."""

    def release(self) -> None:
        """Does nothing."""


class LocalFolder(Folder):
    """A folder on a disk."""

    def __init__(self, path: Path):
        self._path = path.absolute()  # also for processes elsewhere

    def __str__(self) -> str:
        return str(self._path)

    @property
    def is_other(self) -> bool:
        return self._path.is_symlink() or (self._path.exists() and not self._path.is_dir())

    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.glob("*"))

    def has(self, name: str) -> bool:
        return (self._path / name).exists()

    def readable(self, name: str) -> Path:
        return self._path / name

    def first_bytes(self, name: str, count: int) -> bytes | None:
        path = self._path / name
        if not os.path.lexists(path):
            return None
        if path.is_symlink() or not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)

    def replacing(self, name: str) -> AbstractContextManager[Path]:
        return replacing(self._path / name)

    def append(self, name: str, content: bytes) -> None:
        with (self._path / name).open("ab") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        shutil.rmtree(self._path)

    def remove_empty(self) -> None:
        (self._path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something
            self._path.rmdir()

    def locked(self, out: object) -> AbstractContextManager[Lock]:
        return lock_kept(self._path, out)


class StoreFolder(Folder):
    """A prefix of a store, which is there as long as something is in it."""

    is_other = False

    def __init__(self, url: StoreUrl):
        self._url = url
        self._added: dict[str, bytes] = {}

    def __str__(self) -> str:
        return str(self._url)

    def names(self) -> list[str]:
        with store_errors(self._url):
            return sorted(info.base_name for info in self._url.list() if info.is_file)

    def has(self, name: str) -> bool:
        return self._url.child(name).look() is not None

    def readable(self, name: str) -> Any:
        with store_errors(self._url):
            return self._url.system.open_input_file(self._url.child(name).path)

    def first_bytes(self, name: str, count: int) -> bytes | None:
        if not self.has(name):
            return None
        content: bytes = self.readable(name).read(count)
        return content

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="m2d-hub-") as work:
            partial = Path(work) / name
            yield partial
            place = self._url.child(name)
            with store_errors(place), partial.open("rb") as content:
                stream = self._url.system.open_output_stream(place.path)
                shutil.copyfileobj(content, stream, _COPIED_BYTES)
                stream.close()  # only now the object is there

    def append(self, name: str, content: bytes) -> None:
        self._added[name] = self._added.get(name, b"") + content

    def flush(self) -> None:
        for name, content in self._added.items():
            with self.replacing(name) as partial:
                partial.write_bytes(content)
        self._added = {}

    def remove(self, name: str) -> None:
        if self.has(name):
            with store_errors(self._url):
                self._url.system.delete_file(self._url.child(name).path)

    def remove_all(self) -> None:
        with store_errors(self._url):
            if self._url.list():
                self._url.system.delete_dir(self._url.path)

    def remove_empty(self) -> None:
        pass

    @contextlib.contextmanager
    def locked(self, out: object) -> Iterator[Lock]:
        yield NoLock()


def folder_of(place: Path | StoreUrl) -> Folder:
    """The folder at a place."""
    return StoreFolder(place) if isinstance(place, StoreUrl) else LocalFolder(place)
