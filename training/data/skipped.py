"""Clips that cannot be read: skipped, listed once in ``errors.csv``, and counted; too many are an error."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import AudioError
from m2d_hub.io import as_cell, replacing

from .folders import FileLookup
from .manifest import Manifest

ERRORS_FILE = "errors.csv"
COLUMNS = ("row", "file", "error")
MAX_SKIPPED = 0.5  # of a list's clips

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkippedClip:
    """A clip that is skipped."""

    row: int  # of a CSV as a spreadsheet shows it, where the header is row 1; else the position, from 1
    file: str
    error: str


NamedSkip = tuple[str, SkippedClip]  # with the name of its list, where a run reads several


def refuse_too_many(name: str, skipped: int, clips: int, first: SkippedClip) -> None:
    """Refuse a list of which more than half cannot be read.

    Args:
        name: Name of the list.
        skipped: Number of clips that cannot be read.
        clips: Number of all clips.
        first: The first clip that cannot be read.

    Raises:
        AudioError: The message says why the first one cannot be read.
    """
    if skipped > MAX_SKIPPED * clips:
        raise AudioError(
            f"{name}: {skipped:,} of {clips:,} clips cannot be read, the first in row {first.row}: "
            f"{first.error} Check the paths and the files of the list."
        )


def warn_of_missing(manifest: Manifest) -> None:
    """Warn of clips whose file does not exist; they are skipped when their turn comes.

    Raises:
        AudioError: They are more than half of the list.
    """
    files = FileLookup()
    missing = [
        SkippedClip(entry.row, str(entry), f"{os.fspath(file)} does not exist.")
        for entry in manifest.entries
        for file in (entry.path, entry.features_path)
        if file and not files.has(os.fspath(file))
    ]
    if missing:
        refuse_too_many(manifest.name, len({clip.row for clip in missing}), len(manifest.entries), missing[0])
        logger.warning(
            "%s: %d files of clips are missing, the first in row %d: %s Paths are relative to the list.",
            manifest.name,
            len(missing),
            missing[0].row,
            missing[0].error,
        )


def write_errors(folder: Path, skipped: Iterable[SkippedClip]) -> None:
    """Write ``errors.csv`` with one row per skipped clip; without any, remove an old file."""
    rows = [(clip.row, as_cell(clip.file), as_cell(clip.error)) for clip in skipped]
    path = folder / ERRORS_FILE
    if not rows:
        path.unlink(missing_ok=True)
        return
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as lines,
    ):
        csv.writer(lines).writerows([COLUMNS, *rows])


class SkippedLog:
    """Clips that a run skips, each listed once, also when the run is resumed."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], writes: bool = True):
        """Read what an earlier part of the run has listed.

        Args:
            folder: Folder of the run.
            sizes: Number of clips of each list of which at most half may be skipped, by its name.
            writes: Whether this process writes ``errors.csv``.
        """
        self.folder, self.sizes, self.writes = folder, sizes, writes
        self._listed = {_key(clip): clip for clip in _read_errors(folder / ERRORS_FILE)}
        self._rows: dict[str, set[int]] = {}  # by list, those of this part of the run

    def __len__(self) -> int:
        return len(self._listed)

    def add(self, skipped: Iterable[NamedSkip]) -> list[SkippedClip]:
        """List clips, and return those that were not listed before.

        Raises:
            AudioError: More than half of a list cannot be read.
        """
        skipped, new = list(skipped), []
        for _, clip in skipped:
            if _key(clip) not in self._listed:
                self._listed[_key(clip)] = clip
                new.append(clip)
        if new and self.writes:
            write_errors(self.folder, self._listed.values())
        for name, clip in skipped:
            self._rows.setdefault(name, set()).add(clip.row)
            if name in self.sizes:
                refuse_too_many(name, len(self._rows[name]), self.sizes[name], clip)
        return new


def _key(clip: SkippedClip) -> tuple[int, str]:
    return clip.row, as_cell(clip.file)


def _read_errors(path: Path) -> list[SkippedClip]:
    if not path.is_file():
        return []
    rows = [row.cells for row in read_table(path, COLUMNS)]
    return [SkippedClip(int(row["row"]), row["file"], row["error"]) for row in rows if row["row"].isdecimal()]
