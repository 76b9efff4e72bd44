"""Labelled clips that cannot be read: left out, listed in ``errors.csv``, counted."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from m2d_hub.audio import open_audio
from m2d_hub.errors import AudioError
from m2d_hub.files import replacing

from ..data.parts import AudioFile
from .labelled import LabelledList

ERRORS_FILE = "errors.csv"
MOST_LEFT_OUT = 0.5  # of a list's clips
READERS = 2  # threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """A clip that is left out."""

    row: int  # of the list
    file: str
    error: str


def find_unreadable(labelled: LabelledList, sample_rate: int) -> dict[int, str]:
    """Reads every clip to its end; gives the places of those that cannot be read, and why."""

    def reason(file: AudioFile) -> str:
        try:
            (clip,) = open_audio(file, sample_rate)
            for _ in clip.blocks():
                pass
        except (AudioError, OSError) as error:
            return str(error)
        return ""

    files = dict.fromkeys(clip.file for clip in labelled.clips)
    with ThreadPoolExecutor(READERS) as readers:
        reasons = dict(zip(files, readers.map(reason, files), strict=True))
    return {place: reasons[clip.file] for place, clip in enumerate(labelled.clips) if reasons[clip.file]}


def leave_out(labelled: LabelledList, reasons: Mapping[int, str]) -> tuple[LabelledList, list[LeftOut]]:
    """The list without clips that cannot be read.

    Args:
        labelled: All clips.
        reasons: Why a clip cannot be read, by its place in the list.

    Raises:
        AudioError: More than half of the clips cannot be read.
        ConfigError: What is left cannot be used.
    """
    left_out = [
        LeftOut(labelled.clips[place].row, os.fspath(labelled.clips[place].file), reason)
        for place, reason in sorted(reasons.items())
    ]
    if not left_out:
        return labelled, []
    if len(left_out) > MOST_LEFT_OUT * len(labelled.clips):
        raise AudioError(
            f"{labelled.name}: {len(left_out):,} of {len(labelled.clips):,} clips cannot be read, the first "
            f"in row {left_out[0].row}: {left_out[0].error} Look at the paths and the files of the list."
        )
    return labelled.without({clip.row for clip in left_out}), left_out


def write_left_out(folder: Path, left_out: list[LeftOut]) -> None:
    """Writes ``errors.csv``, a row, file and error of each clip; where there is none, removes an old one."""
    path = folder / ERRORS_FILE
    if not left_out:
        path.unlink(missing_ok=True)
        return
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as lines,
    ):
        writer = csv.DictWriter(lines, list(asdict(left_out[0])))
        writer.writeheader()
        writer.writerows(asdict(clip) for clip in left_out)
    logger.warning(
        "%d clips cannot be read and are left out, the first in row %d: %s All are in %s",
        len(left_out),
        left_out[0].row,
        left_out[0].error,
        path,
    )
