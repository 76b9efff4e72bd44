"""Splits that somebody published as files of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError

from .dataset import ListRow, Request, text_lines

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
FILE_COLUMNS = ("file", "file_name")


def standard_split(split: str) -> str | None:
    """Train, valid or test for what others call them; a fold's number as it is; None for anything else."""
    return split if split.isdecimal() else SPLIT_NAMES.get(split.casefold())


def clip_name(path: str) -> str:
    """A clip's name in a split: its path with slashes, without the suffix of audio."""
    pure = PurePosixPath(path.strip().replace("\\", "/"))
    return str(pure.with_suffix("") if pure.suffix.lower() in AUDIO_SUFFIXES else pure)


def read_splits(request: Request, group: str) -> dict[str, str]:
    """Reads the published split of the request.

    Args:
        request: Its split files are text files with a path a line, one file for each of train, valid and test
            (each named so), or a CSV with the column ``split`` and one that names clips or groups of them.
        group: What clips of one split have in common, as that column of the CSV may be called.

    Returns:
        The split of each clip or group, by :func:`clip_name`.

    Raises:
        ConfigError: A file is missing or cannot be used; the message tells where it is to be had.
    """
    advice = f"Name by split_files {request.dataset.split}."
    if not request.split_files:
        raise ConfigError(f"{request.dataset.title} has no split of its own. {advice}")
    splits: dict[str, str] = {}
    for path in request.split_files:
        if not path.is_file():
            raise ConfigError(f"{path} does not exist. {advice}")
        splits |= _read_csv(path, group) if path.suffix.lower() == ".csv" else _read_text(path)
    return splits


def split_rows(
    clips: Sequence[tuple[ListRow, str]], splits: Mapping[str, str], folder: Path
) -> Iterator[ListRow]:
    """Gives clips their splits, and leaves out those that have none, with a warning.

    Args:
        clips: Each with its group; at least one.
        splits: Of clips, by their path below the folder or by their name, or of groups.
        folder: Of the data set.

    Raises:
        ConfigError: No clip has a split.
    """
    found = 0
    for row, group in clips:
        name = clip_name(Path(row.file).relative_to(folder).as_posix())
        keys = (name, group, name.rpartition("/")[2])
        if split := next((splits[key] for key in keys if key in splits), ""):
            found += 1
            yield replace(row, split=split)
    if not found:
        raise ConfigError(
            f"The split names none of the {len(clips):,} clips of {folder}: it has "
            f"{next(iter(splits), '')!r}, the folder {name!r} of {group!r}."
        )
    if found < len(clips):
        logger.warning("%d of %d clips have no split and are left out", len(clips) - found, len(clips))


def _read_text(path: Path) -> dict[str, str]:
    split = standard_split(path.stem.partition("_")[0])
    if split is None:
        raise ConfigError(f"{path} is of no known split: its name must begin with train_, valid_ or test_.")
    return {clip_name(line): split for _, line in text_lines(path)}


def _read_csv(path: Path, group: str) -> dict[str, str]:
    rows = read_table(path, ["split"], [group, *FILE_COLUMNS])
    splits = {}
    for row in rows:
        name = next((row.cells[column] for column in (group, *FILE_COLUMNS) if row.cells[column]), "")
        split = standard_split(row.cells["split"])
        if not name or split is None:
            raise ConfigError(
                f"{path}: row {row.number} has the {group} {name!r} and the split {row.cells['split']!r}; "
                f"needed are one of the columns {group}, file and file_name, and as split train, valid, test "
                "or a number."
            )
        splits[clip_name(name)] = split
    return splits
