"""Where the audio of a file really lies, whatever its header says of its length.

libsndfile stops where a header's count ends. Headers lie: those of streams that went through a pipe say
nothing, those of files that were joined speak of the first one only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that can be read as a file of their own."""

    start: int = 0
    end: int | None = None  # None: the end of the file
    told_bytes: int | None = None  # length that a reader is told; None: its own
    patches: Mapping[int, bytes] = field(default_factory=dict)  # by place in the stretch: what a reader gets


@dataclass(frozen=True)
class Layout:
    """The stretches that hold a file's audio, in order, and whether more was announced."""

    stretches: tuple[Stretch, ...] = (Stretch(),)
    announced: float = 1.0  # audio that the header speaks of, as a multiple of what is there
    is_cut: bool = False  # the end is missing


class StretchReader(io.RawIOBase):
    """A stretch of a file, as a file."""

    def __init__(self, file: BinaryIO, stretch: Stretch, file_bytes: int):
        super().__init__()
        self._file, self._start, self._patches = file, stretch.start, stretch.patches
        self._bytes = (file_bytes if stretch.end is None else stretch.end) - stretch.start
        self._told_bytes = self._bytes if stretch.told_bytes is None else stretch.told_bytes
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._told_bytes}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._place)
        data = bytearray(self._file.read(max(0, min(len(buffer), self._bytes - self._place))))
        for place, patch in self._patches.items():
            for offset, byte in enumerate(patch, start=place - self._place):
                if 0 <= offset < len(data):
                    data[offset] = byte
        if not data and self._place >= self._told_bytes - 128:  # where libmpg123 looks for a tag
            data = bytearray(max(0, min(len(buffer), self._told_bytes - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def number(data: bytes, place: int, num_bytes: int, order: str = "big") -> int:
    """An unsigned whole number in ``data``; bytes beyond its end count as zeros."""
    return int.from_bytes(data[place : place + num_bytes].ljust(num_bytes, b"\0"), order)  # type: ignore[arg-type]


def read_at(file: BinaryIO, place: int, num_bytes: int) -> bytes:
    """Bytes of a file from a place on; fewer at its end, and none beyond it, however far."""
    if place.bit_length() > 62:  # more than a seek can take
        return b""
    file.seek(place)
    return file.read(num_bytes)


def after_id3(file: BinaryIO, place: int) -> int:
    """Where an ID3v2 tag ends that begins at ``place``; ``place`` itself where there is none."""
    head = read_at(file, place, 10)
    if len(head) < 10 or head[:3] != b"ID3":
        return place
    size = sum((head[6 + index] & 0x7F) << 7 * (3 - index) for index in range(4))
    return place + 10 + size + (10 if head[5] & 0x10 else 0)
