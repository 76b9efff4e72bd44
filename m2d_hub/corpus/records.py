"""Embeddings of many files, whatever format they are kept in: a record a file, and how they were made.

Shapes: D features, T frames, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.errors import ConfigError

SETTINGS_KEY = "m2d_hub"  # under which every format keeps the settings


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
class Contents:
    """Settings and names in a file of embeddings; its records are read by :meth:`Format.records`."""

    settings: dict[str, Any]
    files: list[str]


class Format(ABC):
    """How records are laid out in one file; each subclass is one suffix."""

    def require(self) -> None:  # noqa: B027 - most need nothing
        """Checks, before any work, that what writing needs is installed.

        Raises:
            ConfigError: It is not; the message says how to install it.
        """

    @abstractmethod
    def write(self, path: Path, contents: Contents, records: Iterable[Record]) -> None:
        """Writes ``records``, which must be those of ``contents.files`` in that order."""

    @abstractmethod
    def contents(self, path: Path) -> Contents:
        """Settings and names, without reading the arrays."""

    @abstractmethod
    def records(self, path: Path) -> Iterator[Record]:
        """The records, in order, one at a time."""


def foreign_file(path: Path) -> ConfigError:
    """The error for a file that carries no settings of this package."""
    return ConfigError(
        f"{path} exists and was not written by m2d-hub embed; it is left alone. Give --out another name."
    )
