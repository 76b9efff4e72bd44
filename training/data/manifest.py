"""Lists of clips to train on: audio files, tar shards, spectrograms or images, with their labels."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from m2d_hub.audio import AUDIO_SUFFIXES, AudioPart
from m2d_hub.checks import require
from m2d_hub.corpus.sources import files_below
from m2d_hub.corpus.tables import PART_COLUMNS, Row, read_table, refuse_empty
from m2d_hub.errors import ConfigError
from m2d_hub.io import PARTIAL_SUFFIX, reading_file

from .annotations import CAPTION_NAMES, LABEL_NAMES, annotation_of_row, audio_file, standard_split
from .entries import Entry, PackedEntries
from .images import IMAGE_SUFFIXES, is_image
from .shards import INDEX_NAME, expand_pattern, index_shards, read_index

STATISTICS_NAME = "statistics.json"

logger = logging.getLogger(__name__)

Kind = Literal["audio", "spectrogram", "image"]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a data set's log-mel values."""

    mean: float
    std: float
    sample_rate: int  # Hz


@dataclass(frozen=True)
class Manifest:
    """All clips of one data set."""

    name: str  # as given
    kind: Kind
    entries: Sequence[Entry]
    statistics: Statistics | None = None  # where ``m2d-train prepare`` computed them

    def classes(self) -> tuple[str, ...]:
        """Return all labels, sorted; AudioSet's 527 classes if every label is one of them."""
        found = {label for entry in self.entries for label in entry.labels}
        return audioset_classes(found) or tuple(sorted(found))


def audioset_classes(labels: Iterable[str]) -> tuple[str, ...] | None:
    """Return AudioSet's classes in the order of the published heads, if all ``labels`` are among them."""
    from m2d_hub.pretrained.published_names import AUDIOSET_LABELS

    found = set(labels)
    return tuple(AUDIOSET_LABELS) if found and found <= set(AUDIOSET_LABELS) else None


def read_manifest(data: str, split: str = "train") -> Manifest:
    """Read the list that ``--data`` names.

    Args:
        data: A CSV with a ``file`` column, relative to the CSV, and optional ``label``, ``caption``,
            ``features``, ``split``, and ``start_s`` and ``end_s`` of a part; a pattern of tar shards
            (``train-{000000..000009}.tar``, ``shards/*.tar``), or a folder of them; or a folder of audio
            files, spectrograms or images.
        split: Clips of a CSV that are in another of the splits train, valid and test are skipped.

    Raises:
        ConfigError: No clips are found, or clips of several kinds.
    """
    path = Path(data)
    if path.is_dir():
        shards = sorted(str(shard) for shard in path.glob("*.tar"))
        entries = _read_shards(shards) if shards else _read_folder(path)
    elif path.suffix.lower() == ".csv":
        entries = _read_csv(path, split)
    else:
        entries = _read_shards(expand_pattern(data))
    if not entries:
        raise ConfigError(f"{data} lists no clips; give a CSV with a 'file' column, tar shards, or a folder.")
    entries, kind = _of_one_kind(data, entries)
    if kind != "audio" and any(isinstance(entry.path, AudioPart) for entry in entries):
        raise ConfigError(f"{data} has start_s or end_s for {kind} files; only audio is read in parts.")
    return Manifest(data, kind, PackedEntries(entries), _read_statistics(path))


def _read_csv(path: Path, split: str) -> list[Entry]:
    optional = [*LABEL_NAMES, *CAPTION_NAMES, "features", "split", *PART_COLUMNS]
    rows = read_table(path, ["file"], optional)
    refuse_empty(path, rows, "file")
    rows = _rows_of_split(path, rows, split)
    annotations = [annotation_of_row(row.cells) for row in rows]
    return [
        Entry(
            path=audio_file(path, str(path.parent / row.cells["file"]), row),
            label=annotation.label,
            caption=annotation.caption,
            features_path=str(path.parent / row.cells["features"]) if row.cells["features"] else "",
            row=row.number,
        )
        for row, annotation in zip(rows, annotations, strict=True)
    ]


def _rows_of_split(path: Path, rows: list[Row], wanted: str) -> list[Row]:
    """Return the rows of a split, those of every fold, and those without a split.

    Raises:
        ConfigError: A split is not known, or no row is left.
    """
    splits = [standard_split(row.cells["split"]) for row in rows]
    for row, split in zip(rows, splits, strict=True):
        if split is None and row.cells["split"]:
            raise ConfigError(
                f"{path}: row {row.number} has the split {row.cells['split']!r}; write train, valid, test or "
                "the number of a fold, or delete the column to use all rows."
            )
    if any(split and split.isdecimal() for split in splits):
        logger.warning("%s: the clips of all folds are used.", path)
    is_wanted = [not split or split == wanted or split.isdecimal() for split in splits]
    kept = list(itertools.compress(rows, is_wanted))
    if rows and not kept:
        raise ConfigError(f"{path} has no clips in the split {wanted}.")
    if len(kept) < len(rows):
        skipped = len(rows) - len(kept)
        logger.info(
            "%s: %d of %d clips are not in the split %s and are skipped.", path, skipped, len(rows), wanted
        )
    return kept


def _read_folder(folder: Path) -> list[Entry]:
    suffixes = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES, ".npy")
    files = sorted(path for path in files_below(folder) if path.suffix.lower() in suffixes)
    return [Entry(path=str(path), row=row) for row, path in enumerate(files, start=1)]


def _read_shards(shards: list[str]) -> list[Entry]:
    by_folder: dict[Path, list[str]] = {}
    for shard in shards:
        by_folder.setdefault(Path(shard).parent, []).append(shard)
    entries: list[Entry] = []
    for folder, inside in by_folder.items():
        if folder.absolute().name.endswith(PARTIAL_SUFFIX):
            raise ConfigError(
                f"{folder} is the rest of an interrupted preparation; run m2d-train prepare again."
            )
        index = folder / INDEX_NAME
        entries += read_index(index, inside) if index.is_file() else index_shards(inside)
    return [replace(entry, row=row) for row, entry in enumerate(entries, start=1)]


def _of_one_kind(data: str, entries: list[Entry]) -> tuple[list[Entry], Kind]:
    """Return the entries and their kind; images beside audio, such as album covers, are skipped."""
    kinds = [_kind(entry) for entry in entries]
    found = set(kinds)
    if found == {"audio", "image"}:
        sounds = [entry for entry, kind in zip(entries, kinds, strict=True) if kind == "audio"]
        logger.warning("%s: %d images beside audio files are skipped.", data, len(entries) - len(sounds))
        return sounds, "audio"
    if len(found) > 1:
        raise ConfigError(f"{data} mixes {' and '.join(sorted(found))} files; give one kind.")
    return entries, found.pop()


def _kind(entry: Entry) -> Kind:
    name = entry.name or os.fspath(entry.path)
    suffix = os.path.splitext(name)[1].lower()
    return "spectrogram" if suffix == ".npy" else "image" if is_image(name) else "audio"


def _read_statistics(path: Path) -> Statistics | None:
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".csv" or not (folder / STATISTICS_NAME).is_file():
        return None
    file = folder / STATISTICS_NAME
    with reading_file(file, "statistics of prepared data", "Prepare the data again.", ConfigError):
        values = json.loads(file.read_text(encoding="utf-8"))
        statistics = Statistics(float(values["mean"]), float(values["std"]), int(values["sample_rate"]))
    is_usable = math.isfinite(statistics.mean) and 0 < statistics.std < math.inf
    require(is_usable, f"{file} has mean {statistics.mean} and std {statistics.std}; prepare the data again.")
    return statistics
