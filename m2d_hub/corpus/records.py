"""Embeddings of many files, whatever format they are kept in: a record a file, and how they were made.

Shapes: D features, T frames, L layers.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.audio.stored import StoredFile, identity_of
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading, reading_file

SETTINGS_KEY = "m2d_hub"  # under which every format keeps the settings
KIND = "embeddings"  # that an output holds
WAY_OUT = "It was not written by m2d-hub embed, or is damaged, and is left alone: give another one."


@dataclass(frozen=True)
class Record:
    """The embedding of one audio file."""

    file: str  # as it is named in the output
    embedding: np.ndarray  # float32 (D,), (T, D) or (L, T, D)
    timestamps_s: np.ndarray | None = None  # (T,) float64, seconds; None for a clip

    @property
    def num_bytes(self) -> int:
        """Bytes of the embedding, which outweighs the timestamps by far."""
        return self.embedding.nbytes


@dataclass(frozen=True)
class Origin:
    """The file that an embedding was made of."""

    place: int  # 63 bits of the hash of its place: an absolute path, or a URL
    size: int  # bytes
    modified_ns: int  # since 1970

    @classmethod
    def of(cls, path: Path | StoredFile) -> Origin:
        """Of a file as it is now; of a missing one, size and time are 0."""
        digest = hashlib.sha256(os.fsencode(identity_of(path))).digest()
        place = int.from_bytes(digest[:8], "big") >> 1
        if isinstance(path, StoredFile):
            return cls(place, path.size, path.modified_ns)
        try:
            status = path.stat()
        except (OSError, ValueError):
            return cls(place, 0, 0)
        return cls(place, status.st_size, status.st_mtime_ns)

    @property
    def is_missing(self) -> bool:
        """Whether the file is not there any more; what was made of it stays good."""
        return not self.modified_ns


@dataclass(frozen=True)
class Contents:
    """Settings and names in a file of embeddings; its records are read by :meth:`Format.records`."""

    settings: dict[str, Any]
    origins: dict[str, Origin]  # by name, in the order of the records

    @property
    def files(self) -> list[str]:
        """The names."""
        return list(self.origins)

    @property
    def origin_table(self) -> np.ndarray:
        """The origins as int64 (N, 3): place, size, time of change."""
        return np.array([astuple(origin) for origin in self.origins.values()], np.int64).reshape(-1, 3)

    @classmethod
    def parse(cls, settings: str | bytes, files: Any, table: Any) -> Contents:
        """Contents from what a format keeps of them.

        Raises:
            ValueError: They are not what this package writes.
        """
        names, rows = list(files), np.asarray(table)
        if rows.shape != (len(names), 3) or rows.dtype != np.int64:
            raise ValueError(f"origins of shape {rows.shape} for {len(names)} files")
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names that are no text")
        return cls(
            parse_settings(settings), dict(zip(names, (Origin(*row) for row in rows.tolist()), strict=True))
        )


def parse_settings(text: str | bytes) -> dict[str, Any]:
    """The settings that an output was begun with.

    Raises:
        ValueError: They are not what this package writes.
    """
    settings = json.loads(text)
    if not isinstance(settings, dict) or not set(settings) >= {"model", "kind", "window_s"}:
        raise ValueError("no settings of an embedding")
    return settings


class Format(ABC):
    """How records are laid out in one file; each subclass is one suffix."""

    def require(self, path: Path, files: list[str], kind: str) -> None:  # noqa: B027 - most need nothing
        """Checks, before any work, that what writing needs is installed, and that it will hold all files.

        Args:
            path: Where it is going to be written.
            files: All names.
            kind: Of embeddings: clip, frames or layers.

        Raises:
            ConfigError: It is not, or will not; the message says what to do.
        """

    @abstractmethod
    def write(self, path: Path, contents: Contents, records: Iterable[Record]) -> None:
        """Writes ``records``, which must be those of ``contents.files`` in that order."""

    @abstractmethod
    def contents(self, path: Any, name: object = None) -> Contents:
        """Settings and names, without reading the arrays.

        Args:
            path: The file; for Parquet also one that is open.
            name: Of an open one, for messages.
        """

    def records(self, path: Any, name: object = None) -> Iterator[Record]:
        """The records, in order, one at a time, of a file as for :meth:`contents`.

        Raises:
            ConfigError: They are damaged.
        """
        return checked(path if name is None else name, self._records(path))

    @abstractmethod
    def _records(self, path: Any) -> Iterator[Record]:
        """The records, as they are read."""


def checked(path: object, records: Iterator[Record]) -> Iterator[Record]:
    """Records of an output, each read through the door and looked at.

    Raises:
        ConfigError: One cannot be read, or is no embedding.
    """
    while True:
        with reading(path, KIND, WAY_OUT, ConfigError):
            record = next(records, None)
            _check(record)
        if record is None:
            return
        yield record


def reading_output(path: Any, name: object = None) -> AbstractContextManager[None]:
    """The door to a file that should be this package's; ``name`` is that of one that is open."""
    if name is None or isinstance(path, Path):
        return reading_file(path, KIND, WAY_OUT, ConfigError)
    return reading(name, KIND, WAY_OUT, ConfigError)


def _check(record: Record | None) -> None:
    """Raises a ValueError for arrays that are no embedding."""
    if record is None:
        return
    shape, times = record.embedding.shape, record.timestamps_s
    if record.embedding.dtype != np.float32 or (
        len(shape) != 1 if times is None else len(shape) not in (2, 3)
    ):
        raise ValueError(f"an embedding of shape {shape}")
    if times is not None and (times.shape != shape[-2:-1] or not len(times)):
        raise ValueError(f"{len(times)} times of an embedding of shape {shape}")
