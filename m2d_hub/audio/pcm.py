"""WAV, RF64, W64, AIFF, AU and CAF: whether as much data is there as the header says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Literal

from m2d_hub.audio.layout import Layout, Stretch, number, read_at

Order = Literal["big", "little"]
_MOST_CHUNKS = 1_000  # before the samples


@dataclass(frozen=True)
class _Chunks:
    """How a container writes its chunks."""

    first: int  # place of the first one
    name_bytes: int
    size_bytes: int
    order: Order
    counts_head: bool = False  # whether a size counts name and size, too
    alignment: int = 2


_CONTAINERS = {
    b"RIFF": _Chunks(12, 4, 4, "little"),
    b"RF64": _Chunks(12, 4, 4, "little"),
    b"BW64": _Chunks(12, 4, 4, "little"),
    b"RIFX": _Chunks(12, 4, 4, "big"),
    b"FORM": _Chunks(12, 4, 4, "big"),
    b"riff": _Chunks(40, 16, 8, "little", counts_head=True, alignment=8),
    b"caff": _Chunks(8, 4, 8, "big", alignment=1),
}
MAGIC = frozenset([*_CONTAINERS, b".snd", b"dns."])


@dataclass(frozen=True)
class _Told:
    """The length of the samples as a header tells it."""

    place: int  # of the number
    num_bytes: int  # of the number
    order: Order
    start: int  # of the samples
    extra: int = 0  # bytes counted beside the samples

    def value(self, file: BinaryIO) -> int | None:
        """Bytes of samples; None: the length was not known when the header was written."""
        value = number(read_at(file, self.place, self.num_bytes), 0, self.num_bytes, self.order)
        unknown = (1 << 8 * self.num_bytes) - 1, (1 << 8 * self.num_bytes - 1) - 1
        return None if value <= self.extra or value in unknown else value - self.extra

    def patch(self, value: int) -> dict[int, bytes]:
        """The number as it should be."""
        return {self.place: (value + self.extra).to_bytes(self.num_bytes, self.order)}


def find_layout(file: BinaryIO, size: int) -> Layout:
    """Corrects a length that was never filled in or is no longer true, and tells joined files apart."""
    if len(starts := _joined(file, size)) > 1:
        return Layout(tuple(map(Stretch, starts, [*starts[1:], None])))
    told = _find_told(file, size)
    there = 0 if told is None else size - told.start
    if told is None or there <= 0 or (there + told.extra).bit_length() > 8 * told.num_bytes - 1:
        return Layout()
    value = told.value(file)
    if value is not None and value <= there:
        return Layout()
    if value is None and _is_closed(file, size):
        return Layout()
    patched = Stretch(patches=told.patch(there))
    return Layout((patched,), 1.0 if value is None else value / there, is_cut=value is not None)


def _joined(file: BinaryIO, size: int) -> list[int]:
    """Where files begin that follow each other in one."""
    magic = read_at(file, 0, 4)
    starts = [0]
    while magic in (b"RIFF", b"FORM") and len(starts) < _MOST_CHUNKS:
        told = number(read_at(file, starts[-1] + 4, 4), 0, 4, _CONTAINERS[magic].order)
        end = starts[-1] + 8 + told + told % 2
        if end >= size or read_at(file, end, 4) != magic:
            break
        starts.append(end)
    return starts


def _is_closed(file: BinaryIO, size: int) -> bool:
    """Whether the outermost chunk was given its length: then an empty one within it is meant to be empty."""
    head = read_at(file, 0, 8)
    kind = _CONTAINERS.get(head[:4])
    return kind is not None and kind.size_bytes == 4 and number(head, 4, 4, kind.order) + 8 == size


def _find_told(file: BinaryIO, size: int) -> _Told | None:
    magic = read_at(file, 0, 4)
    if magic in (b".snd", b"dns."):
        order: Order = "big" if magic == b".snd" else "little"
        return _Told(8, 4, order, start=number(read_at(file, 4, 4), 0, 4, order))
    kind = _CONTAINERS[magic]
    place, large = kind.first, None
    for _ in range(_MOST_CHUNKS):
        head = read_at(file, place, kind.name_bytes + kind.size_bytes)
        if place >= size or len(head) < kind.name_bytes + kind.size_bytes:
            return None
        start, length = place + len(head), number(head, kind.name_bytes, kind.size_bytes, kind.order)
        if head[:4] in (b"data", b"SSND"):
            inner = 8 if head[:4] == b"SSND" else 4 if magic == b"caff" else 0  # before the samples
            if large is not None:
                return _Told(large + 8, 8, kind.order, start)
            extra = inner + (len(head) if kind.counts_head else 0)
            return _Told(place + kind.name_bytes, kind.size_bytes, kind.order, start + inner, extra)
        if head[:4] == b"ds64":
            large = start
        length -= len(head) if kind.counts_head else 0
        place = start + -(-max(0, length) // kind.alignment) * kind.alignment
    return None
