"""A public data set's folder to a list, with what differs from what is published."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2d_hub.corpus.tables import PART_COLUMNS
from m2d_hub.errors import ConfigError
from m2d_hub.io import open_file, replacing

from ..entry import LABEL_SEPARATOR
from ..listing import FolderListing
from .catalogue import find_dataset, find_variant
from .dataset import ALL, ListRow, Request, Variant

logger = logging.getLogger(__name__)

COLUMNS = ("file", "label", "split", *PART_COLUMNS)


@dataclass(frozen=True)
class MadeList:
    """Result of making a list: what it holds, and how that differs from what is published."""

    path: Path
    clips: Mapping[str, int]  # by split, and "all"
    labels: int  # different ones
    missing: int  # clips of the data set whose audio is not there, left out
    differences: tuple[str, ...]  # from the published counts, a sentence each


def make_list(
    dataset: str,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    variant: str | None = None,
    split_files: Sequence[str | os.PathLike[str]] = (),
    audio: str | os.PathLike[str] | None = None,
) -> MadeList:
    """Makes the list of a public data set from its folder, for fine-tuning, evaluation or pre-training.

    Clips whose audio is not there are left out and counted, and counts are compared with the published ones:
    what differs is warned of.

    Args:
        dataset: A name, as ``esc50``; ``m2d-train list --where`` tells all.
        folder: The data set as it is published; of ``evar`` a table of that platform.
        out: CSV to write. Files below its folder are named relative to it, others by their whole path.
        variant: Which list, where there are several, as ``pitch`` of ``nsynth``.
        split_files: The published split, where the data set has none of its own.
        audio: Folder of the clips, of ``evar`` only.

    Raises:
        ConfigError: A name is not known, or the folder is not laid out as published.
    """
    public, chosen = find_dataset(dataset), find_variant(dataset, variant)
    request = Request(
        public, Path(folder), tuple(map(Path, split_files)), None if audio is None else Path(audio)
    )
    _check(dataset, request, Path(out))
    rows, missing = _usable(chosen.rows(request), public.title)
    if not rows:
        raise ConfigError(
            f"{folder} holds none of the {missing:,} clips of {public.title}; expected as published: "
            f"{public.layout}."
        )
    clips = {**Counter(row.split for row in rows if row.split), ALL: len(rows)}
    labels = len({label for row in rows for label in row.label.split(LABEL_SEPARATOR) if label})
    differences = tuple(_differences(clips, labels, chosen))
    _write(Path(out), rows)
    if differences:
        logger.warning("%s: %s (%s)", public.title, "; ".join(differences), public.reference)
    return MadeList(Path(out), clips, labels, missing, differences)


def _check(name: str, request: Request, out: Path) -> None:
    if name != "evar" and not request.folder.is_dir():
        raise ConfigError(f"{request.folder} is no folder; give that of {request.dataset.title}.")
    if request.split_files and not request.dataset.split:
        raise ConfigError(f"{name} has its own split; split_files is not for it.")
    if request.audio is not None and name != "evar":
        raise ConfigError(f"audio is for evar; of {name} the folder itself is given.")
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"out must be a .csv file, got {out}.")
    if out.is_file() and not _is_list(out):
        raise ConfigError(f"{out} exists and is no list (its first column is not 'file'); give another out.")


def _is_list(path: Path) -> bool:
    with open_file(path, "a list", ConfigError) as lines:
        return lines.readline().strip().split(b",")[0] == COLUMNS[0].encode()


def _usable(rows: Iterable[ListRow], title: str) -> tuple[list[ListRow], int]:
    """Rows whose audio is there, and how many others there are."""
    listing = FolderListing()
    usable, missing, backwards = [], [], 0
    for row in rows:
        file = listing.find_audio(row.file)
        if file is None or not _is_utf8(file):
            missing.append(row.file)
        elif row.end_s is not None and row.end_s <= (row.start_s or 0.0):
            backwards += 1
        else:
            usable.append(ListRow(file, row.label, row.split, row.start_s, row.end_s))
    if missing:
        logger.warning(
            "%s: %d of %d clips are not there and are left out, the first is %s",
            title,
            len(missing),
            len(missing) + len(usable) + backwards,
            missing[0],
        )
    if backwards:
        logger.warning("%s: %d parts do not end after their start and are left out", title, backwards)
    return usable, len(missing)


def _is_utf8(name: str) -> bool:
    """Whether a list, which is UTF-8, can hold a file's name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _differences(clips: Mapping[str, int], labels: int, variant: Variant) -> Iterable[str]:
    for split, published in variant.clips.items():
        if clips.get(split, 0) != published:
            name = "the list" if split == ALL else f"{'fold' if split.isdecimal() else 'split'} {split}"
            yield f"{name} has {clips.get(split, 0):,} clips, published are {published:,}"
    if variant.labels is not None and labels != variant.labels:
        yield f"the list has {labels:,} labels, published are {variant.labels:,}"


def _write(out: Path, rows: Sequence[ListRow]) -> None:
    """Writes the columns that some row fills."""
    used = [column for column in COLUMNS if any(getattr(row, column) not in (None, "") for row in rows)]
    below = os.path.join(os.path.abspath(out.parent), "")
    with replacing(out) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(used)
        for row in rows:
            cells = {column: getattr(row, column) for column in used}
            cells["file"] = os.path.abspath(row.file).removeprefix(below)
            writer.writerow(cells.values())
