"""Tar shards (WebDataset's layout), read at random through the byte ranges of their members.

Random access keeps shuffling exact and a resumed run identical, which a stream with a shuffle buffer cannot.
An index of a folder of shards saves reading all headers; it is used for shards of the size that it states.
"""

from __future__ import annotations

import csv
import glob
import logging
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.shards import Member, members_of
from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading, reading_file, replacing

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
SHARD_BYTES = "shard_bytes"
INDEX_COLUMNS = ("shard", *INDEX_TEXTS, *INDEX_NUMBERS, SHARD_BYTES)

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


def index_shards(shards: Iterable[str]) -> list[Entry]:
    """Read the headers of tar shards, and the labels and captions in them.

    Each audio file, spectrogram and image is a clip. What belongs to it (``.json`` with label and caption,
    ``.txt`` with a caption, ``.features.npy``) has its name up to the suffix; or, as in WebDataset, its name
    up to the first dot, where that is of one clip only or all clips that share it are meant.

    Raises:
        ConfigError: A shard is not a tar file, holds a name twice, links, or annotations that cannot be read.
    """
    return [entry for shard in shards for entry in _index_shard(shard)]


def _index_shard(shard: str) -> Iterator[Entry]:
    hint = "Write it again, complete and without compression."
    with reading_file(shard, "a tar shard", hint, ConfigError), open(shard, "rb") as file:
        clips, annotations, features = _read_contents(shard, file)
    stems = [_stem(clip.name) for clip in clips]
    annotations, features = _belonging(stems, annotations), _belonging(stems, features)
    for clip, stem in zip(clips, stems, strict=True):
        annotation, feature = annotations.get(stem, Annotation()), features.get(stem, Member("", 0, 0))
        yield Entry(
            path=shard,
            offset=clip.offset,
            size=clip.size,
            name=clip.name,
            label=annotation.label,
            caption=annotation.caption,
            features_path=shard if feature.name else "",
            features_offset=feature.offset,
            features_size=feature.size,
        )


def _read_contents(
    shard: str, file: BinaryIO
) -> tuple[list[Member], dict[str, Annotation], dict[str, Member]]:
    """Return clips, and by their names up to the suffix, annotations and features."""
    clips, annotations, features = list[Member](), dict[str, Annotation](), dict[str, Member]()
    for member in members_of(file, shard, (*CLIP_SUFFIXES, *ANNOTATION_SUFFIXES), ConfigError):
        name = posixpath.normpath(member.name)
        stem = _stem(name)
        if name.lower().endswith(FEATURES_SUFFIX):
            features[name[: -len(FEATURES_SUFFIX)]] = member
        elif name.lower().endswith(CLIP_SUFFIXES):
            clips.append(member)
        else:
            annotations[stem] = _annotation(shard, file, member) | annotations.get(stem, Annotation())
    return clips, annotations, features


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
        writer = csv.DictWriter(lines, INDEX_COLUMNS)
        writer.writeheader()
        for entry in entries:
            cells = {column: getattr(entry, column) for column in (*INDEX_TEXTS, *INDEX_NUMBERS)}
            shard = os.fspath(entry.path)
            writer.writerow({"shard": os.path.basename(shard), SHARD_BYTES: os.path.getsize(shard), **cells})


def read_index(path: Path, shards: Sequence[str]) -> list[Entry]:
    """Return the clips of ``shards`` by the table that :func:`write_index` wrote, or by their headers.

    Raises:
        ConfigError: The table is damaged, names a shard that is missing, or does not match a shard.
    """
    entries: list[Entry] = []
    others = {os.path.basename(shard): shard for shard in shards}
    try:
        rows: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in read_table(path, INDEX_COLUMNS):
            rows[row.cells["shard"]].append(row.cells)
        for name, cells in rows.items():
            if name in others:
                entries += _indexed_entries(others.pop(name), cells)
            elif not (path.parent / name).is_file():
                raise ConfigError(f"it names {name}, which is missing.")
    except (ConfigError, ValueError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be used: {error} If the shards are correct, delete it to read their headers."
        ) from error
    if others:
        logger.warning("%s lacks %d shards, whose headers are read: %s …", path, len(others), min(others))
    return entries + index_shards(others.values())


def _indexed_entries(shard: str, rows: list[dict[str, str]]) -> Iterator[Entry]:
    """Yield the clips of one shard, which must have its size, and all of its members, as indexed."""
    end = os.path.getsize(shard)
    for cells in rows:
        texts: dict[str, Any] = {column: cells[column] for column in INDEX_TEXTS}
        numbers = {column: int(cells[column]) for column in INDEX_NUMBERS}
        last = max(numbers["offset"] + numbers["size"], numbers["features_offset"] + numbers["features_size"])
        if int(cells[SHARD_BYTES]) != end or min(numbers.values()) < 0 or last > end:
            raise ConfigError(f"it does not match {shard}.")
        yield Entry(shard, **(texts | numbers), features_path=shard if numbers["features_size"] else "")
