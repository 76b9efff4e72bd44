"""Files that are not on this machine's disk by themselves: members of archives, objects of stores."""

from __future__ import annotations

import io
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, BinaryIO


class StoredFile(ABC):
    """A file within another one or elsewhere; ``str()`` is its place, as messages name it."""

    size: int  # bytes
    modified_ns: int  # since 1970

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes, from a place to read at that is nobody else's.

        Raises:
            AudioError: It cannot be read.
        """

    @property
    def identity(self) -> str:
        """Its place, by which it is known from others."""
        return str(self.absolute())

    def fetched(self) -> StoredFile:
        """Itself, or a copy on this machine, kept as long as anybody holds it, where reading it is slow.

        Raises:
            AudioError: It cannot be read.
        """
        return self

    def absolute(self) -> StoredFile:
        """The same file for a process with another current folder."""
        return self


class FetchedFile(StoredFile):
    """A copy in a temporary file, which goes when this object does."""

    def __init__(self, name: str, size: int, modified_ns: int):
        self._name, self.size, self.modified_ns = name, size, modified_ns
        self._file = NamedTemporaryFile(prefix="m2d-hub-")  # noqa: SIM115 - it is closed with this object

    def fill(self, content: IO[bytes]) -> None:
        """Copies the bytes."""
        shutil.copyfileobj(content, self._file, 1 << 20)
        self._file.flush()

    def open(self) -> BinaryIO:
        return Path(self._file.name).open("rb")

    def __str__(self) -> str:
        return self._name


class PartReader(io.RawIOBase):
    """A range of bytes of a file as a file; closing it closes the whole file."""

    def __init__(self, whole: BinaryIO, offset: int, size: int):
        super().__init__()
        self._whole, self._offset, self._size, self._position = whole, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._whole.seek(self._offset + self._position)
        data = self._whole.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._whole.close()
        super().close()


def part_of(whole: BinaryIO, offset: int, size: int) -> BinaryIO:
    """``size`` bytes of a file from ``offset`` on; closing them closes the file."""
    return io.BufferedReader(PartReader(whole, offset, size))


def identity_of(path: Path | StoredFile) -> str:
    """What a file is known by, however it was given."""
    return path.identity if isinstance(path, StoredFile) else os.path.abspath(path)
