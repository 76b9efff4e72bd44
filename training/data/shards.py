"""Tar shards (WebDataset's layout), read at random through the byte ranges of their members.

Random access keeps shuffling exact and a resumed run identical, which a stream with a shuffle buffer cannot.
An index of a folder of shards saves reading all headers; it is used for shards of the size that it states.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import logging
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.shards import Member, members_of
from m2d_hub.corpus.tables import Row, read_table
from m2d_hub.errors import ConfigError
from m2d_hub.io import open_file, reading, reading_file, replacing

from .annotations import Annotation, read_annotation
from .entries import Entry
from .images import IMAGE_SUFFIXES

CLIP_SUFFIXES = (*sorted(AUDIO_SUFFIXES), ".npy", *IMAGE_SUFFIXES)
ANNOTATION_SUFFIXES = (".json", ".txt")
FEATURES_SUFFIX = ".features.npy"
MAX_ANNOTATION_BYTES = 1 << 20
INDEX_NAME = "index.csv"
INDEX_NUMBERS = ("offset", "size", "features_offset", "features_size")
INDEX_TEXTS = ("name", "label", "caption")
INDEX_COLUMNS = ("shard", *INDEX_TEXTS, *INDEX_NUMBERS)
SHARD_BYTES = "shard_bytes"  # column of the index; earlier releases wrote none
CHECKED_MEMBERS = 8  # of each shard, whose headers are compared with the index
MAX_DIGITS = 18

logger = logging.getLogger(__name__)

Belonging = TypeVar("Belonging")


def expand_pattern(pattern: str) -> list[str]:
    """Return the shards that a pattern with ``{000000..000009}`` or ``*`` names.

    The name of an existing file or folder is taken literally.

    Raises:
        ConfigError: The pattern does not end in ``.tar``, or names no shard.
    """
    import braceexpand

    if not pattern.endswith(".tar"):
        raise ConfigError(f"{pattern} is not a .csv, a folder, or a pattern of .tar shards.")
    if os.path.isfile(pattern):
        return [pattern]
    folder, name = os.path.split(pattern)
    is_literal = os.path.isdir(folder)
    with reading(pattern, "a pattern of shards", "Write {000000..000009} or *.", ConfigError):
        parts = list(braceexpand.braceexpand(name if is_literal else pattern))
    if is_literal:
        escaped = glob.escape(folder)
        parts = [os.path.join(escaped if "*" in part else folder, part) for part in parts]
    shards = sorted(path for part in parts for path in (glob.glob(part) if "*" in part else [part]))
    if not shards:
        raise ConfigError(f"{pattern} matches no shard; give a pattern of existing .tar files.")
    return list(dict.fromkeys(shards))


def read_shards(folder: Path, shards: Sequence[str]) -> list[Entry]:
    """Return the clips of shards in one folder, by its index or the shards' own headers.

    Raises:
        ConfigError: A shard, or the index, cannot be used.
    """
    index = folder / INDEX_NAME
    return _read_index(index, shards) if index.is_file() else index_shards(shards)


def index_shards(shards: Iterable[str]) -> list[Entry]:
    """Read the headers of tar shards, and the labels and captions in them.

    Each audio file, spectrogram and image is a clip. What belongs to it (``.json`` with label and caption,
    ``.txt`` with a caption, ``.features.npy``) has its name up to the suffix; or, as in WebDataset, its name
    up to the first dot, where that is of one clip only or all clips that share it are meant.

    Raises:
        ConfigError: A shard is not a tar file, holds a name twice, links, or annotations that cannot be read.
    """
    return [entry for shard in shards for entry in _index_shard(shard)]


@dataclass
class _Contents:
    """Members of one shard."""

    clips: list[Member] = field(default_factory=list)
    annotations: dict[str, Annotation] = field(default_factory=dict)  # by name up to the suffix
    features: dict[str, Member] = field(default_factory=dict)


def _index_shard(shard: str) -> Iterator[Entry]:
    hint = "Write it again, complete and without compression."
    with reading_file(shard, "a tar shard", hint, ConfigError), open(shard, "rb") as file:
        contents = _read_contents(shard, file)
    stems = [_stem(clip.name) for clip in contents.clips]
    annotations, features = _belonging(stems, contents.annotations), _belonging(stems, contents.features)
    for clip, stem in zip(contents.clips, stems, strict=True):
        annotation, feature = annotations.get(stem, Annotation()), features.get(stem)
        yield Entry(
            path=shard,
            offset=clip.offset,
            size=clip.size,
            name=clip.name,
            label=annotation.label,
            caption=annotation.caption,
            features_path=shard if feature else "",
            features_offset=feature.offset if feature else 0,
            features_size=feature.size if feature else 0,
        )


def _read_contents(shard: str, file: BinaryIO) -> _Contents:
    contents = _Contents()
    for member in members_of(file, shard, (*CLIP_SUFFIXES, *ANNOTATION_SUFFIXES), ConfigError):
        name = posixpath.normpath(member.name)
        if name.lower().endswith(FEATURES_SUFFIX):
            contents.features[name[: -len(FEATURES_SUFFIX)]] = member
        elif name.lower().endswith(CLIP_SUFFIXES):
            contents.clips.append(member)
        else:
            annotation = _annotation(shard, file, member)
            contents.annotations[_stem(name)] = annotation | contents.annotations.get(
                _stem(name), Annotation()
            )
    return contents


def _annotation(shard: str, file: BinaryIO, member: Member) -> Annotation:
    name = f"{shard}:{posixpath.normpath(member.name)}"
    if member.size > MAX_ANNOTATION_BYTES:
        raise ConfigError(f"{name} has {member.size:,} bytes; the maximum is {MAX_ANNOTATION_BYTES:,}.")
    file.seek(member.offset)
    return read_annotation(name, file.read(member.size))


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.normpath(name))[0]


def _key(stem: str) -> str:
    """WebDataset's key: the name up to its first dot."""
    folder, base = posixpath.split(stem)
    return posixpath.join(folder, base.split(".")[0])


def _belonging(stems: list[str], found: dict[str, Belonging]) -> dict[str, Belonging]:
    """Return what belongs to each clip, by the clip's name up to its suffix."""
    clips = set(stems)
    clips_of_key = Counter(map(_key, clips))
    by_key: dict[str, Belonging] = {}
    for stem, value in found.items():
        key = _key(stem)
        if stem not in clips and (stem == key or clips_of_key[key] == 1):
            by_key[key] = value
    by_stem = {stem: found.get(stem, by_key.get(_key(stem))) for stem in clips}
    return {stem: value for stem, value in by_stem.items() if value is not None}


def write_index(path: Path, entries: Iterable[Entry]) -> None:
    """Write the table of the clips of shards in the folder of ``path``."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, (*INDEX_COLUMNS, SHARD_BYTES))
        writer.writeheader()
        for entry in entries:
            cells = {column: getattr(entry, column) for column in (*INDEX_TEXTS, *INDEX_NUMBERS)}
            shard = os.fspath(entry.path)
            writer.writerow({"shard": os.path.basename(shard), SHARD_BYTES: os.path.getsize(shard), **cells})


def _read_index(path: Path, shards: Sequence[str]) -> list[Entry]:
    """Return the clips of ``shards`` by the table that :func:`write_index` wrote, or by their headers.

    Raises:
        ConfigError: The table is damaged, names a shard that is missing, or does not match a shard.
    """
    wanted = {os.path.basename(shard): shard for shard in shards}
    rows: dict[str, list[Row]] = defaultdict(list)
    hint = f"If the shards are correct, delete {path}; their headers are read then."
    try:
        for row in read_table(path, INDEX_COLUMNS, [SHARD_BYTES]):
            rows[row.cells["shard"]].append(row)
        if missing := [name for name in rows if name not in wanted and not (path.parent / name).is_file()]:
            raise ConfigError(f"{path} names {missing[0]}, which is missing.")
        indexed = [name for name in rows if name in wanted and rows[name][0].cells[SHARD_BYTES]]
        entries = [entry for name in indexed for entry in _checked_entries(path, wanted[name], rows[name])]
    except ConfigError as error:
        raise ConfigError(f"{error} {hint}") from error
    if others := [shard for name, shard in wanted.items() if name not in indexed]:
        logger.warning("%s lacks %d shards, whose headers are read: %s …", path, len(others), others[0])
    return entries + index_shards(others)


def _checked_entries(path: Path, shard: str, rows: list[Row]) -> list[Entry]:
    """Return the clips of one shard, which must have its size, and some of its members, as indexed."""
    entries = [_indexed_entry(path, shard, row) for row in rows]
    ordered = sorted(entries, key=lambda entry: entry.offset)
    sample = [*ordered[:: max(1, len(ordered) // CHECKED_MEMBERS)], ordered[-1]]
    with open_file(shard, "a tar shard", ConfigError) as file:
        end = file.seek(0, os.SEEK_END)
        ranges = [(e.offset + e.size, e.features_offset + e.features_size) for e in entries]
        if (
            {row.cells[SHARD_BYTES] for row in rows} != {str(end)}
            or max(map(max, ranges)) > end
            or not all(_has_header(file, entry) for entry in sample)
        ):
            raise ConfigError(f"{shard} does not match the index {path}.")
    return entries


def _indexed_entry(path: Path, shard: str, row: Row) -> Entry:
    for column in INDEX_NUMBERS:
        text = row.cells[column]
        if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
            raise ConfigError(f"{path}: row {row.number} has the {column} {text!r}.")
    cells = row.cells
    return Entry(
        path=shard,
        offset=int(cells["offset"]),
        size=int(cells["size"]),
        name=cells["name"],
        label=cells["label"],
        caption=cells["caption"],
        features_path=shard if int(cells["features_size"]) else "",
        features_offset=int(cells["features_offset"]),
        features_size=int(cells["features_size"]),
    )


def _has_header(file: BinaryIO, entry: Entry) -> bool:
    """Return whether the header of a member stands before its data."""
    if entry.offset < tarfile.BLOCKSIZE:
        return False
    file.seek(entry.offset - tarfile.BLOCKSIZE)
    with contextlib.suppress(tarfile.HeaderError):
        header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        # Names that are longer, or not in ASCII, stand in a header of their own.
        has_plain_name = entry.name.isascii() and len(entry.name) < tarfile.LENGTH_NAME
        return header.size == entry.size and (header.name == entry.name or not has_plain_name)
    return False
