"""Members of tar shards (WebDataset), read in place.

Shards may come from anywhere: links, devices and sparse members are not followed, a member that extends
beyond the end of the file is not read, and a member's name is only a name, never a path.
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
from m2d_hub.errors import AudioError, reason_of
from m2d_hub.io import CHUNK_BYTES

SHARD_SUFFIX = ".tar"


@dataclass(frozen=True)
class Member:
    """Header of a member."""

    name: str
    offset: int = 0  # bytes from the start of the shard to the data
    size: int = 0  # bytes
    problem: str = ""  # a sentence that says why it cannot be read


def members_of(file: BinaryIO, shard: object, suffixes: tuple[str, ...]) -> Iterator[Member]:
    """Return the members whose names end in one of ``suffixes``, in order, except hidden ones.

    Damage after which nothing can be read is the last member; its name is empty.

    Args:
        file: The shard, from its beginning; not compressed. Archives may be joined (``cat a.tar b.tar``).
        shard: Its name, for messages.
        suffixes: In lower case.
    """
    end = file.seek(0, os.SEEK_END)
    names: set[str] = set()
    position = 0
    try:
        while position < end or not end:
            file.seek(position)
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # must not close the file
            for info in tar:
                name = posixpath.normpath(info.name)
                if not _is_wanted(info, name, suffixes):
                    continue
                problem = _problem(info, shard, end, name in names)
                yield Member(info.name, info.offset_data, info.size, problem)
                if info.offset_data + info.size > end:
                    return
                names.add(name)
            position = _next_content(file, tar.offset)
            if position == tar.offset:  # tarfile takes a damaged header or a missing end mark for the end
                yield Member(
                    "", problem=f"{shard} is damaged or cut off at byte {position:,}; create it again."
                )
                return
    except (tarfile.TarError, ValueError, EOFError, OverflowError, OSError, RecursionError) as error:
        reason = "too many nested headers" if isinstance(error, RecursionError) else reason_of(error)
        yield Member("", problem=f"{shard} cannot be read as an uncompressed tar shard ({reason}).")


def _is_wanted(info: tarfile.TarInfo, name: str, suffixes: tuple[str, ...]) -> bool:
    is_hidden = posixpath.basename(name).startswith(".")
    return not (info.isdir() or is_hidden) and name.lower().endswith(suffixes)


def _next_content(file: BinaryIO, position: int) -> int:
    """Return the position of the next block that is not all zeros, or of the end of the file."""
    file.seek(position)
    while chunk := file.read(CHUNK_BYTES):
        if content := chunk.lstrip(b"\0"):
            return (position + len(chunk) - len(content)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        position += len(chunk)
    return position


def _problem(info: tarfile.TarInfo, shard: object, end: int, is_repeated: bool) -> str:
    if is_repeated:
        return f"{shard} contains {posixpath.normpath(info.name)} twice; give each clip its own name."
    if not info.isreg() or info.issparse():
        return (
            f"{shard} contains {info.name} as a link or a sparse file; store it as a regular file (tar "
            "--dereference --hard-dereference)."
        )
    if not 0 <= info.size <= end - info.offset_data:
        return f"{shard} is cut off: it ends before its member {info.name} does."
    return ""


@dataclass(frozen=True)
class ShardFile(StoredFile):
    """A member of a tar shard, or the part of a shard that cannot be read."""

    shard: Path | StoredFile
    name: str  # as in the archive; empty: the rest of the shard
    offset: int
    size: int
    modified_ns: int  # of the shard
    problem: str = ""

    def open(self) -> BinaryIO:
        if self.problem:
            raise AudioError(self.problem)
        return part_of(_open(self.shard), self.offset, self.size)

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
        shard = replace(self, shard=self.shard.absolute() if isinstance(self.shard, Path) else self.shard)
        return f"{shard}{f'@{self.offset}' if self.problem else ''}"

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}" if self.name else str(self.shard)


def shard_files(shard: Path | StoredFile) -> Iterator[ShardFile]:
    """Return the audio files in a shard; opening one that cannot be read raises the reason."""
    modified_ns = 0
    try:
        modified_ns = shard.stat().st_mtime_ns if isinstance(shard, Path) else shard.modified_ns
        with _open(shard) as file:
            for member in members_of(file, shard, tuple(AUDIO_SUFFIXES)):
                yield ShardFile(shard, member.name, member.offset, member.size, modified_ns, member.problem)
    except (OSError, AudioError) as error:
        yield ShardFile(shard, "", 0, 0, modified_ns, f"{shard} cannot be opened ({reason_of(error)}).")


def _open(shard: Path | StoredFile) -> BinaryIO:
    return shard.open("rb") if isinstance(shard, Path) else shard.open()
