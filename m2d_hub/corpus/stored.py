"""Embeddings that were written by ``m2d-hub embed``, read again, whatever their format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.folder_output import folder_contents, folder_records
from m2d_hub.corpus.formats import FORMATS
from m2d_hub.corpus.outputs import check_suffix
from m2d_hub.corpus.records import Contents, Origin, Record, reading
from m2d_hub.errors import ConfigError


@dataclass(frozen=True)
class Stored:
    """An output of :func:`m2d_hub.embed_files`: how its embeddings were made, and of which files."""

    path: Path
    contents: Contents

    @property
    def settings(self) -> dict[str, Any]:
        """Model, weights, kind and window of the embeddings."""
        return self.contents.settings

    @property
    def origins(self) -> dict[str, Origin]:
        """What each embedding was made of, by the name of its file."""
        return self.contents.origins

    def records(self) -> Iterator[Record]:
        """The embeddings, in order, one at a time.

        Raises:
            ConfigError: The output is damaged.
        """
        records = _records(self.path)
        while True:
            with reading(self.path):
                record = next(records, None)
                _check(record)
            if record is None:
                return
            yield record


def read_stored(path: str | os.PathLike[str]) -> Stored:
    """Opens an output of :func:`m2d_hub.embed_files`: ``.parquet``, ``.npz``, ``.safetensors`` or a folder.

    Raises:
        ConfigError: There is none, it is not finished, or something else wrote it.
    """
    path = Path(path)
    check_suffix(path)
    if not path.exists():
        begun = path.with_name(path.name + ".parts").is_dir()
        raise ConfigError(
            f"{path} is not finished: run the m2d-hub embed that writes it again."
            if begun
            else f"{path} does not exist: give what m2d-hub embed wrote."
        )
    return Stored(path, folder_contents(path) if path.is_dir() else FORMATS[_suffix(path)].contents(path))


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


def _records(path: Path) -> Iterator[Record]:
    return folder_records(path) if path.is_dir() else FORMATS[_suffix(path)].records(path)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"{path} is no output of m2d-hub embed: give {', '.join(FORMATS)} or its folder.")
    return suffix
