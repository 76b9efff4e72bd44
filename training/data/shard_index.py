"""The index of a folder of shards: its clips with their byte ranges, so that no header need be read."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from m2d_hub.corpus.tables import Row, read_table
from m2d_hub.errors import ConfigError
from m2d_hub.io import open_file, replacing

from .shards import ShardMember, index_shards, is_clip

INDEX_NAME = "index.csv"
COLUMNS = tuple(field.name for field in dataclasses.fields(ShardMember))
NUMBERS = ("offset", "size", "features_offset", "features_size")
COMPARED = 8  # members of each shard whose headers are compared with the index
MOST_DIGITS = 18  # of a byte's place

logger = logging.getLogger(__name__)


def write_index(path: Path, members: Iterable[ShardMember]) -> None:
    """Writes the members' table, with shard names relative to its folder."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        for member in members:
            writer.writerow({**dataclasses.asdict(member), "shard": os.path.basename(member.shard)})


def read_index(path: Path, shards: Sequence[str]) -> list[ShardMember]:
    """Members of ``shards``, by the table that :func:`write_index` wrote or, where it lacks one, its headers.

    Raises:
        ConfigError: The table is none, names a shard that is missing, or does not tell what a shard holds.
    """
    wanted = {os.path.basename(shard): shard for shard in shards}
    members: dict[str, list[ShardMember]] = defaultdict(list)
    for row in _read_rows(path):
        members[row.cells["shard"]].append(_member(path, row, wanted))
    if missing := [name for name in members if name not in wanted and not (path.parent / name).is_file()]:
        raise ConfigError(f"{path} names {missing[0]}, which is missing. {_advice(path)}")
    for name in wanted.keys() & members.keys():
        _compare(path, wanted[name], members[name])
    if lacking := [shard for name, shard in wanted.items() if name not in members]:
        logger.warning("%s lacks %d shards, which are read themselves: %s …", path, len(lacking), lacking[0])
    indexed = [member for name in members if name in wanted for member in members[name]]
    return indexed + index_shards(lacking)


def _read_rows(path: Path) -> list[Row]:
    try:
        return read_table(path, COLUMNS)
    except ConfigError as error:
        raise ConfigError(f"{error} {_advice(path)}") from error


def _advice(path: Path) -> str:
    return f"If the shards are as they should be, delete {path}: they are read themselves then."


def _member(path: Path, row: Row, wanted: dict[str, str]) -> ShardMember:
    cells = row.cells
    for column in NUMBERS:
        if not (cells[column].isascii() and cells[column].isdecimal() and len(cells[column]) <= MOST_DIGITS):
            raise ConfigError(f"{path}: row {row.number} has the {column} {cells[column]!r}. {_advice(path)}")
    return ShardMember(
        shard=wanted.get(cells["shard"], cells["shard"]),
        name=cells["name"],
        offset=int(cells["offset"]),
        size=int(cells["size"]),
        label=cells["label"],
        caption=cells["caption"],
        features_offset=int(cells["features_offset"]),
        features_size=int(cells["features_size"]),
    )


def _compare(path: Path, shard: str, members: list[ShardMember]) -> None:
    """Looks whether some of the members, the first and the last among them, are where the index says."""
    ordered = sorted(members, key=lambda member: member.offset)
    some = {*ordered[:: max(1, len(ordered) // COMPARED)], ordered[-1]}
    ranges = [(m.offset, m.size) for m in members] + [(m.features_offset, m.features_size) for m in members]
    with open_file(shard, "a tar shard", ConfigError) as file:
        end = file.seek(0, os.SEEK_END)
        if (
            any(offset + size > end for offset, size in ranges)
            or not all(_is_there(file, member) for member in some)
            or _has_clip_after(file, ordered[-1])
        ):
            raise ConfigError(f"{shard} is not the shard that {path} tells of. {_advice(path)}")


def _is_there(file: BinaryIO, member: ShardMember) -> bool:
    header = _header_at(file, member.offset - tarfile.BLOCKSIZE)
    if header is None or header.size != member.size:
        return False
    has_plain_name = member.name.isascii() and len(member.name) < tarfile.LENGTH_NAME
    return header.name == member.name or not has_plain_name  # others are written before this header


def _has_clip_after(file: BinaryIO, last: ShardMember) -> bool:
    place, size = last.offset, last.size
    while header := _header_at(file, place + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE):
        if is_clip(header.name) and header.isreg():
            return True
        place, size = file.tell(), header.size
    return False


def _header_at(file: BinaryIO, offset: int) -> tarfile.TarInfo | None:
    if offset < 0:
        return None
    file.seek(offset)
    with contextlib.suppress(tarfile.HeaderError):
        return tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    return None
