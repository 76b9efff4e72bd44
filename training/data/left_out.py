"""Clips that cannot be read: left out, named once in ``errors.csv``, counted; too many are an error."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import AudioError
from m2d_hub.io import replacing

ERRORS_FILE = "errors.csv"
COLUMNS = ("row", "file", "error")
MOST_LEFT_OUT = 0.5  # of a list's clips


@dataclass(frozen=True)
class LeftOut:
    """A clip that is left out."""

    row: int  # of a CSV as a spreadsheet shows it, where the header is row 1; else the clip's place, from 1
    file: str
    error: str


NamedLeftOut = tuple[str, LeftOut]  # with the name of its list, where a run reads several


def refuse_too_many(name: str, left_out: int, clips: int, first: LeftOut) -> None:
    """Refuses a list of which more than half cannot be read.

    Args:
        name: Of the list.
        left_out: Clips that cannot be read.
        clips: All clips.
        first: Of those that cannot be read.

    Raises:
        AudioError: The message tells why the first one cannot be read.
    """
    if left_out > MOST_LEFT_OUT * clips:
        raise AudioError(
            f"{name}: {left_out:,} of {clips:,} clips cannot be read, the first in row {first.row}: "
            f"{first.error} Look at the paths and the files of the list."
        )


def write_errors(folder: Path, left_out: Iterable[LeftOut]) -> None:
    """Writes ``errors.csv``, a row, file and error of each clip; where there is none, removes an old one."""
    rows = [astuple(clip) for clip in left_out]
    path = folder / ERRORS_FILE
    if not rows:
        path.unlink(missing_ok=True)
        return
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as lines,
    ):
        csv.writer(lines).writerows([COLUMNS, *rows])


class LeftOutLog:
    """Clips that a run comes across and cannot read, each named once, also where the run goes on."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], writes: bool = True):
        """Reads what an earlier part of the run wrote down.

        Args:
            folder: Of the run.
            sizes: Clips of each list that must not lack more than half, by its name.
            writes: Whether this process writes ``errors.csv``.
        """
        self.folder, self.sizes, self.writes = folder, sizes, writes
        self._named = {(clip.row, clip.file): clip for clip in _read_errors(folder / ERRORS_FILE)}
        self._places: dict[str, set[int]] = {}  # by list, those of this part of the run

    def __len__(self) -> int:
        return len(self._named)

    def add(self, met: Iterable[NamedLeftOut]) -> list[LeftOut]:
        """Names clips; returns those that were not named before.

        Raises:
            AudioError: More than half of a list cannot be read.
        """
        met, new = list(met), []
        for _, clip in met:
            if (clip.row, clip.file) not in self._named:
                self._named[clip.row, clip.file] = clip
                new.append(clip)
        if new and self.writes:
            write_errors(self.folder, self._named.values())
        for name, clip in met:
            self._places.setdefault(name, set()).add(clip.row)
            if name in self.sizes:
                refuse_too_many(name, len(self._places[name]), self.sizes[name], clip)
        return new


def _read_errors(path: Path) -> list[LeftOut]:
    if not path.is_file():
        return []
    rows = [row.cells for row in read_table(path, COLUMNS)]
    return [LeftOut(int(row["row"]), row["file"], row["error"]) for row in rows if row["row"].isdecimal()]
