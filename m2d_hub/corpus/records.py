"""Rows of an output, and fingerprints of the files that they were computed from.

Shapes: D features, T frames, L layers.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.audio.stored import StoredFile, identity_of

SETTINGS_KEY = "m2d_hub"  # under which every format stores the settings


@dataclass(frozen=True)
class Row:
    """The embedding of one audio file."""

    file: str  # its name in the output
    embedding: np.ndarray  # float32 (D,), (T, D) or (L, T, D)
    timestamps_s: np.ndarray | None = None  # (T,) float64, seconds; None for a clip

    def check(self) -> None:
        """Raise a ValueError if the arrays are not an embedding."""
        shape, times = self.embedding.shape, self.timestamps_s
        dims = (1,) if times is None else (2, 3)
        if self.embedding.dtype != np.float32 or len(shape) not in dims or 0 in shape:
            raise ValueError(f"an embedding of shape {shape} and type {self.embedding.dtype}")
        if times is not None and (times.shape != shape[-2:-1] or times.dtype != np.float64):
            raise ValueError(f"timestamps of shape {times.shape} for an embedding of shape {shape}")


@dataclass(frozen=True)
class Fingerprint:
    """Identity and state of an audio file when it was embedded."""

    path_hash: int  # 63 bits of the hash of its absolute path or URL
    size: int  # bytes; -1: the file does not exist
    modified_ns: int  # since 1970, modulo 2^64, as a signed number

    @classmethod
    def of(cls, path: Path | StoredFile) -> Fingerprint:
        """Return the fingerprint of a file as it is now."""
        digest = hashlib.sha256(os.fsencode(identity_of(path))).digest()
        path_hash = int.from_bytes(digest[:8], "big") >> 1
        if isinstance(path, StoredFile):
            return cls(path_hash, path.size, _signed(path.modified_ns))
        try:
            status = path.stat()
        except (OSError, ValueError):
            return cls(path_hash, -1, 0)
        return cls(path_hash, status.st_size, _signed(status.st_mtime_ns))

    @property
    def is_missing(self) -> bool:
        """Whether the file does not exist; its embedding remains valid."""
        return self.size < 0


@dataclass(frozen=True)
class Entries:
    """Settings of an output, and the fingerprints of its files in the order of its rows."""

    settings: dict[str, Any]
    fingerprints: dict[str, Fingerprint]  # by name

    @property
    def table(self) -> np.ndarray:
        """The fingerprints as int64 (N, 3)."""
        rows = [astuple(fingerprint) for fingerprint in self.fingerprints.values()]
        return np.array(rows, np.int64).reshape(-1, 3)

    @classmethod
    def parse(cls, settings: str | bytes, files: Any, table: Any) -> Entries:
        """Return the entries that a format stores.

        Raises:
            ValueError: They are malformed.
        """
        names, rows = list(files), np.asarray(table)
        if rows.shape != (len(names), 3) or rows.dtype != np.int64:
            raise ValueError(f"fingerprints of shape {rows.shape} for {len(names)} files")
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError("file names that are not text, or not unique")
        fingerprints = (Fingerprint(*row) for row in rows.tolist())
        return cls(parse_settings(settings), dict(zip(names, fingerprints, strict=True)))


def parse_settings(text: str | bytes) -> dict[str, Any]:
    """Return the settings of an output.

    Raises:
        ValueError: They are malformed.
    """
    settings = json.loads(text)
    if not isinstance(settings, dict) or not set(settings) >= {"model", "kind", "window_s"}:
        raise ValueError("settings of something else")
    return settings


def _signed(time_ns: int) -> int:
    """Return a time as int64; times after 2262 wrap around."""
    return (time_ns + (1 << 63)) % (1 << 64) - (1 << 63)
