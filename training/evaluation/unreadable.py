"""Labelled clips that cannot be read: found before training, skipped and reported."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from m2d_hub.audio import AudioPart, open_audio
from m2d_hub.errors import AudioError

from ..data.annotations import AudioFile
from ..data.entries import Entry
from ..data.images import read_image
from ..data.skipped import ERRORS_FILE, SkippedClip, refuse_too_many
from .clip_encoder import read_in_threads
from .labelled import LabelledList

READERS = min(8, os.cpu_count() or 1)  # threads

logger = logging.getLogger(__name__)


def read_sound(file: AudioFile) -> None:
    """Read a clip to its end."""
    (clip,) = open_audio(file, 16_000)
    for _ in clip.blocks():
        pass


def read_picture(file: AudioFile) -> None:
    """Read an image to its end, at the smallest size that its format supports."""
    read_image(Entry(file), min_size=(1, 1))


def file_key(file: AudioFile) -> str:
    """Return a hash of a file's path, size and time of change, and of the part that is used.

    Raises:
        OSError: The file does not exist.
    """
    state = os.stat(file)
    part = [file.start_s, file.end_s] if isinstance(file, AudioPart) else []
    text = json.dumps([os.path.abspath(file), state.st_size, state.st_mtime_ns, *part])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def find_unreadable(
    labelled: LabelledList,
    read: Callable[[AudioFile], None] = read_sound,
    *,
    memory: Path | None = None,
    progress: bool = False,
) -> dict[int, str]:
    """Read every clip to its end; return the indices of those that cannot be read, with the reason.

    ``memory`` is a text file of the keys of readable files, which are not read again unless they change.
    """
    from tqdm import tqdm

    def reason(file: AudioFile) -> str:
        try:
            read(file)
        except AudioError as error:
            return str(error)
        return ""

    keys = {clip.file: file_key(clip.file) for clip in labelled.clips}
    known = set(memory.read_text().split()) if memory is not None and memory.is_file() else set()
    unknown = [file for file in keys if keys[file] not in known]
    reasons: dict[AudioFile, str] = {}
    with contextlib.ExitStack() as stack:
        lines = None if memory is None else stack.enter_context(memory.open("a"))
        results = read_in_threads(reason, unknown, READERS)
        bar = tqdm(results, "checking clips", len(unknown), unit="clip", disable=None if progress else True)
        for file, found in zip(unknown, bar, strict=True):
            if found:
                reasons[file] = found
            elif lines is not None:
                lines.write(f"{keys[file]}\n")
    return {index: reasons[clip.file] for index, clip in enumerate(labelled.clips) if clip.file in reasons}


def skip_unreadable(
    labelled: LabelledList, reasons: Mapping[int, str]
) -> tuple[LabelledList, list[SkippedClip]]:
    """Return the list without unreadable clips, and those clips.

    Raises:
        AudioError: More than half of the clips cannot be read.
        ConfigError: The remaining list cannot be used.
    """
    skipped = [
        SkippedClip(labelled.clips[index].row, os.fspath(labelled.clips[index].file), reason)
        for index, reason in sorted(reasons.items())
    ]
    if skipped:
        refuse_too_many(labelled.name, len(skipped), len(labelled.clips), skipped[0])
        labelled = labelled.without({clip.row for clip in skipped})
    return labelled, skipped


def warn_of_skipped(folder: Path, skipped: list[SkippedClip]) -> None:
    """Warn about clips that are skipped and listed in the folder's ``errors.csv``."""
    if skipped:
        logger.warning(
            "%d clips cannot be read and are skipped, the first in row %d: %s All are listed in %s",
            len(skipped),
            skipped[0].row,
            skipped[0].error,
            folder / ERRORS_FILE,
        )
