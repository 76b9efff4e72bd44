"""Members of tar shards: which are read, and why others are not. Nothing is unpacked, and no name is a path.

Archives may come from anywhere: a member that is a link, a device or sparse is not followed, one whose bytes
reach beyond the end is not read, and what a name says, ``..`` or an absolute path, is a name only.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from m2d_hub.audio.clips import AUDIO_SUFFIXES
from m2d_hub.audio.stored import FetchedFile, StoredFile, part_of
from m2d_hub.errors import AudioError

SHARD_SUFFIX = ".tar"


@dataclass(frozen=True)
class Member:
    """A member's header, and what is wrong with it, as a sentence; empty: it can be read."""

    name: str
    offset: int = 0  # bytes, of its data
    size: int = 0
    problem: str = ""


def members_of(file: BinaryIO, shard: object, suffixes: tuple[str, ...]) -> Iterator[Member]:
    """The members whose names end in one of ``suffixes``, but hidden ones, in order.

    The last tells of damage after which nothing can be read: its name is empty.

    Args:
        file: The shard's bytes, from their beginning; not compressed.
        shard: Its name, for messages.
        suffixes: In small letters.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    names: set[str] = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                name = posixpath.normpath(info.name)
                is_hidden = posixpath.basename(name).startswith(".")
                if info.isdir() or is_hidden or not name.lower().endswith(suffixes):
                    continue
                yield Member(
                    info.name, info.offset_data, info.size, _problem(info, shard, end, name in names)
                )
                if info.offset_data + info.size > end:
                    return
                names.add(name)
            last = tar.offset
        file.seek(last)
        if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
            yield Member("", problem=f"{shard} is damaged at byte {last:,}: make it again.")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        reason = str(error).rstrip(".")
        problem = f"{shard} cannot be read as a tar shard (whole, without compression): {reason}."
        yield Member("", problem=problem)


def _problem(info: tarfile.TarInfo, shard: object, end: int, is_there: bool) -> str:
    if is_there:
        return f"{shard} holds {posixpath.normpath(info.name)} twice: give each clip a name of its own."
    if not info.isreg() or info.issparse():
        return (
            f"{shard} holds {info.name} as a link or a sparse file: write it as a file (tar --dereference "
            "--hard-dereference)."
        )
    if not 0 <= info.size <= end - info.offset_data:
        return f"{shard} is cut off: it ends before its member {info.name} does."
    return ""


@dataclass(frozen=True)
class ShardFile(StoredFile):
    """A member of a tar shard as an audio file, or what of the shard cannot be read."""

    shard: Path | StoredFile
    name: str  # as in the archive; empty: the shard from some place on
    offset: int
    size: int
    modified_ns: int  # of the shard
    problem: str = ""

    def open(self) -> BinaryIO:
        if self.problem:
            raise AudioError(self.problem)
        return part_of(_opened(self.shard), self.offset, self.size)

    def fetched(self) -> StoredFile:
        if self.problem:
            raise AudioError(self.problem)
        if isinstance(self.shard, Path):
            return self
        copy = FetchedFile(str(self), self.size, self.modified_ns)
        with self.open() as part:
            copy.fill(part)
        return copy

    @property
    def identity(self) -> str:
        return f"{self.absolute()}{f'@{self.offset}' if self.problem else ''}"

    def absolute(self) -> StoredFile:
        return replace(self, shard=self.shard.absolute())

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}" if self.name else str(self.shard)


def shard_files(shard: Path | StoredFile) -> Iterator[ShardFile]:
    """The audio files in a shard, in its order; those that cannot be read tell why when they are opened.

    Raises:
        OSError: The shard cannot be opened.
    """
    modified_ns = shard.stat().st_mtime_ns if isinstance(shard, Path) else shard.modified_ns
    with _opened(shard) as file:
        for member in members_of(file, shard, tuple(AUDIO_SUFFIXES)):
            yield ShardFile(shard, member.name, member.offset, member.size, modified_ns, member.problem)


def _opened(shard: Path | StoredFile) -> BinaryIO:
    return shard.open("rb") if isinstance(shard, Path) else shard.open()
