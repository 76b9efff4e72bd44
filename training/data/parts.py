"""Rows of a list that mean a part of a file: the optional columns ``start_s`` and ``end_s``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from m2d_hub.audio import AudioPart
from m2d_hub.corpus.tables import PART_COLUMNS, Row
from m2d_hub.errors import ConfigError

AudioFile = str | AudioPart  # a path, or a part of what is there


def audio_files(path: Path, files: Sequence[str], rows: Sequence[Row]) -> list[AudioFile]:
    """The meaning of each row of a list.

    Args:
        path: The list, for messages.
        files: Paths of the rows' files.
        rows: With the columns ``start_s`` and ``end_s``.

    Raises:
        ConfigError: A cell is no number of seconds, or a part ends before it starts.
    """
    return [_audio_file(path, file, row) for file, row in zip(files, rows, strict=True)]


def _audio_file(path: Path, file: str, row: Row) -> AudioFile:
    if not any(row.cells[column] for column in PART_COLUMNS):
        return file
    start_s, end_s = (_seconds(path, row, column) for column in PART_COLUMNS)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ConfigError(
            f"{path}: row {row.number} ends at {end_s:g} s, not after its start at {start_s or 0:g} s."
        )
    return AudioPart(file, start_s or 0.0, end_s)


def _seconds(path: Path, row: Row, column: str) -> float | None:
    text = row.cells[column]
    try:
        seconds = float(text) if text else 0.0
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(
            f"{path}: row {row.number} has the {column} {text!r}; give seconds, 0 or more, or leave it empty."
        )
    return seconds if text else None
