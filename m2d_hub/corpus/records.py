"""Rows of an output, and fingerprints of the files that they were computed from.

Shapes: D features, T frames, L layers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from m2d_hub.audio.stored import StoredFile, identity_of

Item = TypeVar("Item")


class Fingerprint(NamedTuple):
    """Identity and state of an audio file when it was embedded."""

    path_hash: int  # 63 bits of the hash of its absolute path or URL
    size: int  # bytes; -1: the file does not exist
    modified_ns: int  # since 1970, modulo 2^63

    @classmethod
    def of(cls, path: Path | StoredFile) -> Fingerprint:
        """Return the fingerprint of a file as it is now."""
        digest = hashlib.sha256(os.fsencode(identity_of(path))).digest()
        path_hash = int.from_bytes(digest[:8], "big") >> 1
        if isinstance(path, StoredFile):
            return cls(path_hash, path.size, path.modified_ns % (1 << 63))
        try:
            status = path.stat()
        except (OSError, ValueError):
            return cls(path_hash, -1, 0)
        return cls(path_hash, status.st_size, status.st_mtime_ns % (1 << 63))

    @property
    def is_missing(self) -> bool:
        """Whether the file does not exist; its embedding remains valid."""
        return self.size < 0


_UNKNOWN = Fingerprint(0, -1, 0)


@dataclass(frozen=True)
class Row:
    """The embedding of one audio file."""

    file: str  # its name in the output
    embedding: np.ndarray  # float32 (D,), (T, D) or (L, T, D)
    timestamps_s: np.ndarray | None = None  # (T,) float64, seconds; None for a clip
    fingerprint: Fingerprint = _UNKNOWN

    def __post_init__(self) -> None:
        shape, times = self.embedding.shape, self.timestamps_s
        dims = (1,) if times is None else (2, 3)
        if self.embedding.dtype != np.float32 or len(shape) not in dims or 0 in shape:
            raise ValueError(f"an embedding of shape {shape} and type {self.embedding.dtype}")
        if times is not None and (times.shape != shape[-2:-1] or times.dtype != np.float64):
            raise ValueError(f"timestamps of shape {times.shape} for an embedding of shape {shape}")


def batched(
    items: Iterable[Item], size_of: Callable[[Item], int], max_bytes: int, max_items: int | None = None
) -> Iterator[list[Item]]:
    """Return lists of items that have at most ``max_bytes`` together, or one larger item."""
    batch: list[Item] = []
    total = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == max_items or total + size > max_bytes):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
