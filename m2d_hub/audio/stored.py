"""Audio files inside other files or in remote stores."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO

from m2d_hub.errors import AudioError


class StoredFile(ABC):
    """An audio file that is not a plain file on disk; ``str()`` names it in messages."""

    size: int  # bytes; -1 if the file does not exist
    modified_ns: int  # since 1970

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open the file for reading bytes, with its own read position.

        Raises:
            AudioError: It cannot be read.
        """

    @property
    def identity(self) -> str:
        """Unique name of the file."""
        return str(self)

    def fetched(self) -> StoredFile:
        """Return this file, or a temporary local copy if reading it in place is slow.

        Raises:
            AudioError: It cannot be read.
        """
        return self


class FetchedFile(StoredFile):
    """A temporary copy, which the system deletes when this object or the process ends."""

    def __init__(self, name: str, size: int, modified_ns: int):
        self._name, self.size, self.modified_ns = name, size, modified_ns
        self._file = TemporaryFile(prefix="m2d-hub-")  # noqa: SIM115  # closed with this object
        self.lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def fill(self, content: IO[bytes]) -> None:
        """Copy the bytes.

        Raises:
            AudioError: There are fewer bytes than expected.
            OSError: The disk of temporary files is full.
        """
        shutil.copyfileobj(content, self._file, 1 << 20)
        if self._file.tell() != self.size:
            raise AudioError(
                f"{self._name} is incomplete: {self._file.tell():,} of {self.size:,} bytes could be read."
            )

    def open(self) -> BinaryIO:
        return io.BufferedReader(_Window(self._file, 0, self.size, self))

    def __str__(self) -> str:
        return self._name


class _Window(io.RawIOBase):
    """A range of bytes of another file, as a file."""

    def __init__(self, whole: IO[bytes], offset: int, size: int, owner: FetchedFile | None = None):
        """Wrap ``whole``, which its owner shares, and which without an owner is closed with this file."""
        super().__init__()
        self._whole, self._offset, self._size, self._owner = whole, offset, size, owner
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with self._owner.lock if self._owner else contextlib.nullcontext():
            self._whole.seek(self._offset + self._position)
            data = self._whole.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if self._owner is None:
            self._whole.close()
        super().close()


def part_of(whole: BinaryIO, offset: int, size: int) -> BinaryIO:
    """Return ``size`` bytes of a file from ``offset`` as a file; closing it closes ``whole``."""
    return io.BufferedReader(_Window(whole, offset, size))


def identity_of(path: Path | StoredFile) -> str:
    """Return the unique name of a file, however it was given."""
    return path.identity if isinstance(path, StoredFile) else os.path.abspath(path)
