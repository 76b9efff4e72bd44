"""Rows of an output, and fingerprints of the files that they were computed from.

Shapes: D features, T frames, L layers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
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
    # Centres of frames (T,) or start and end of segments (T, 2), float64, seconds; None for a clip.
    timestamps_s: np.ndarray | None = None
    fingerprint: Fingerprint = _UNKNOWN

    def __post_init__(self) -> None:
        shape, times = self.embedding.shape, self.timestamps_s
        dims = (1,) if times is None else (2, 3)
        if self.embedding.dtype != np.float32 or len(shape) not in dims or 0 in shape:
            raise ValueError(f"an embedding of shape {shape} and type {self.embedding.dtype}")
        allowed = [shape[-2:-1], (*shape[:-1], 2)]
        if times is not None and (times.shape not in allowed or times.dtype != np.float64):
            raise ValueError(f"timestamps of shape {times.shape} for an embedding of shape {shape}")

    @property
    def is_segments(self) -> bool:
        """Whether the embedding is one of segments."""
        return self.timestamps_s is not None and self.timestamps_s.ndim == 2


Segment = tuple[
    str, Fingerprint, np.ndarray, float, float
]  # file, fingerprint, embedding (D,), start_s, end_s


def joined_segments(segments: Iterable[Segment]) -> Iterator[Row]:
    """Join consecutive segments of a file to its row."""
    for (file, fingerprint), group in groupby(segments, key=itemgetter(0, 1)):
        _, _, embeddings, starts, ends = zip(*group, strict=True)
        yield Row(file, np.stack(embeddings), np.array([starts, ends]).T.copy(), fingerprint)


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
