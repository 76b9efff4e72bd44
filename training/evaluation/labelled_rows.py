"""Rows of a labelled CSV: read, and refused with their numbers where they cannot be used."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from m2d_hub.corpus.tables import PART_COLUMNS, counted, listed, read_table, refuse_empty
from m2d_hub.errors import ConfigError

from ..data.class_folders import class_folders
from ..data.entry import LABEL_SEPARATOR
from ..data.listing import FolderListing
from ..data.parts import AudioFile, audio_files

logger = logging.getLogger(__name__)

COLUMNS = ("file", "label", "split")


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One row of the list."""

    file: AudioFile  # absolute path, or a part of what is there
    labels: tuple[str, ...]
    split: str  # train, valid or test, or a fold's number
    row: int  # as a spreadsheet shows it: the header is row 1; of a folder, the place from 1


def read_rows(path: Path) -> list[LabelledClip]:
    """All rows of a CSV but blank ones, or the clips of a folder in splits and classes.

    Raises:
        ConfigError: It is neither, lists nothing, a row lacks something, or a file does not exist.
    """
    if path.is_dir():
        return [
            LabelledClip(os.path.abspath(row.file), (row.label,), row.split, place)
            for place, row in enumerate(class_folders(path), start=1)
        ]
    clips = _read_csv(path)
    _check_files(path, clips)
    return clips


def _read_csv(path: Path) -> list[LabelledClip]:
    rows = read_table(path, COLUMNS, PART_COLUMNS)
    if not rows:
        raise ConfigError(f"{path} lists no clips.")
    refuse_empty(path, rows, "file")
    unlabelled = [row.number for row in rows if not _split_labels(row.cells["label"])]
    if unlabelled:
        raise ConfigError(f"{path}: {counted(unlabelled)} no label ({listed(unlabelled)}).")
    folder = os.path.abspath(path.parent)
    files = [os.path.normpath(os.path.join(folder, row.cells["file"])) for row in rows]
    return [
        LabelledClip(
            file=file,
            labels=_split_labels(row.cells["label"]),
            split=row.cells["split"],
            row=row.number,
        )
        for row, file in zip(rows, audio_files(path, files, rows), strict=True)
    ]


@lru_cache(maxsize=10_000)
def _split_labels(text: str) -> tuple[str, ...]:
    labels = (label.strip() for label in text.split(LABEL_SEPARATOR))
    return tuple(dict.fromkeys(label for label in labels if label))


def _check_files(path: str | os.PathLike[str], clips: list[LabelledClip]) -> None:
    """Refuses rows whose file does not exist, and warns of files that are in several splits.

    Raises:
        ConfigError: A file does not exist; the message names the rows.
    """
    listing = FolderListing()
    missing = []
    splits_of: dict[str, set[str]] = defaultdict(set)  # by path: parts of a recording are much alike
    for clip in clips:
        if not listing.has(os.fspath(clip.file)):
            missing.append(clip)
        splits_of[os.fspath(clip.file)].add(clip.split)
    if missing:
        raise ConfigError(
            f"{path}: {counted([clip.row for clip in missing])} a file that does not exist "
            f"({listed([f'{clip.row}: {clip.file}' for clip in missing])}). Paths are relative to the CSV."
        )
    if shared := [file for file, splits in splits_of.items() if len(splits) > 1]:
        logger.warning(
            "%s: %d files are in more than one split, for instance %s; the result is too good.",
            path,
            len(shared),
            shared[0],
        )
