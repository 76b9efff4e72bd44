"""Labelled clips that cannot be read: left out, listed in ``errors.csv``, counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from m2d_hub.audio import open_audio
from m2d_hub.errors import AudioError

from ..data.entry import Entry
from ..data.images import read_image
from ..data.left_out import ERRORS_FILE, LeftOut, refuse_too_many
from ..data.parts import AudioFile
from .labelled import LabelledList

READERS = min(8, os.cpu_count() or 1)  # threads
READ_AT_HZ = 16_000  # whether a clip can be read hangs on no rate

logger = logging.getLogger(__name__)


def read_sound(file: AudioFile, sample_rate: int = READ_AT_HZ) -> None:
    """Reads a clip to its end."""
    (clip,) = open_audio(file, sample_rate)
    for _ in clip.blocks():
        pass


def read_picture(file: AudioFile) -> None:
    """Reads a picture to its end, as small as its format allows."""
    read_image(Entry(file), least=(1, 1))


def find_unreadable(labelled: LabelledList, read: Callable[[AudioFile], None] = read_sound) -> dict[int, str]:
    """Reads every clip to its end; gives the places of those that cannot be read, and why."""

    def reason(file: AudioFile) -> str:
        try:
            read(file)
        except AudioError as error:
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
    if left_out:
        refuse_too_many(labelled.name, len(left_out), len(labelled.clips), left_out[0])
        labelled = labelled.without({clip.row for clip in left_out})
    return labelled, left_out


def warn_of_left_out(folder: Path, left_out: list[LeftOut]) -> None:
    """Warn about clips that are skipped and listed in the folder's ``errors.csv``."""
    if left_out:
        logger.warning(
            "%d clips cannot be read and are skipped, the first in row %d: %s All are listed in %s",
            len(left_out),
            left_out[0].row,
            left_out[0].error,
            folder / ERRORS_FILE,
        )
