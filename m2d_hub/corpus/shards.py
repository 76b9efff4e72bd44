"""Members of tar shards (WebDataset), read in place.

Shards may come from anywhere: links, devices and sparse members are refused, a member that extends beyond
the end of the file is not read, and a member's name is only a name, never a path.
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
from m2d_hub.errors import AudioError, M2DError
from m2d_hub.io import CHUNK_BYTES, reading

SHARD_SUFFIX = ".tar"


@dataclass(frozen=True)
class Member:
    """Header of a member."""

    name: str
    offset: int  # bytes from the start of the shard to the data
    size: int  # bytes


def members_of(
    file: BinaryIO, shard: object, suffixes: tuple[str, ...], failure: type[M2DError]
) -> Iterator[Member]:
    """Return the members whose names end in one of ``suffixes``, in order, except hidden ones.

    Args:
        file: The shard, from its beginning; not compressed.
        shard: Its name, for messages.
        suffixes: In lower case.
        failure: The error type to raise.

    Raises:
        M2DError: A ``failure`` at the first member that cannot be read; those before it were returned.
    """
    names: set[str] = set()
    with reading(shard, "a tar shard", "Create it again, without compression and links.", failure):
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                name = posixpath.normpath(info.name)
                is_hidden = posixpath.basename(name).startswith(".")
                is_plain = info.isreg() and not info.issparse()
                if is_plain and not 0 <= info.size <= end - info.offset_data:
                    raise ValueError(f"it is cut off: it ends before its member {name} does")
                if info.isdir() or is_hidden or not name.lower().endswith(suffixes):
                    continue
                if not is_plain:
                    raise ValueError(f"{name} is a link or a sparse file, not a regular file")
                if name in names:
                    raise ValueError(f"it contains {name} twice")
                names.add(name)
                yield Member(info.name, info.offset_data, info.size)
            file.seek(tar.offset)
            if file.read(CHUNK_BYTES).strip(tarfile.NUL) or tar.offset >= end:
                raise ValueError(
                    f"it is damaged or cut off at byte {tar.offset:,}, or another archive follows there"
                )


@dataclass(frozen=True)
class ShardFile(StoredFile):
    """A member of a tar shard, or the part of a shard that cannot be read."""

    shard: Path | StoredFile
    name: str  # as in the archive; empty: the rest of the shard
    offset: int
    size: int
    modified_ns: int  # of the shard
    problem: str = ""  # a sentence that says why it cannot be read

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
        return str(replace(self, shard=self.shard.absolute()) if isinstance(self.shard, Path) else self)

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}" if self.name else str(self.shard)


def shard_files(shard: Path | StoredFile) -> Iterator[ShardFile]:
    """Return the audio files in a shard; opening the last one raises why the rest cannot be read."""
    modified_ns = 0
    try:
        with reading(shard, "a tar shard", "Check its permissions.", AudioError), _open(shard) as file:
            modified_ns = shard.stat().st_mtime_ns if isinstance(shard, Path) else shard.modified_ns
            for member in members_of(file, shard, tuple(AUDIO_SUFFIXES), AudioError):
                yield ShardFile(shard, member.name, member.offset, member.size, modified_ns)
    except AudioError as error:
        yield ShardFile(shard, "", 0, 0, modified_ns, str(error))


def _open(shard: Path | StoredFile) -> BinaryIO:
    return shard.open("rb") if isinstance(shard, Path) else shard.open()
