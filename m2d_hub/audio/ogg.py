"""Ogg: the streams that are chained one after the other, and whether the last one is closed."""

from __future__ import annotations

from typing import BinaryIO

from m2d_hub.audio.layout import Layout, Stretch, read_at

_BEGIN, _END = 2, 4  # flags of a stream's first and last page
_SEARCH_BYTES = 1 << 16


def find_layout(file: BinaryIO, size: int) -> Layout:
    """Tells chained streams apart by their pages."""
    starts: list[int] = []
    was_begin = is_closed = False
    place: int | None = 0
    while place is not None and place < size:
        head = read_at(file, place, 27 + 255)
        if head[:4] != b"OggS" or len(head) < 27 or len(head) < 27 + head[26]:
            place = _next_page(file, place + 1, size)
            continue
        is_begin = bool(head[5] & _BEGIN)
        if is_begin and not was_begin:
            starts.append(place)
            is_closed = False
        was_begin = is_begin
        place += 27 + head[26] + sum(head[27 : 27 + head[26]])
        is_closed = (is_closed or bool(head[5] & _END)) and place <= size
    if not starts:
        return Layout()
    ends = [*starts[1:], None]
    if len(starts) == 1:
        return Layout(is_cut=not is_closed)
    stretches = (Stretch(start, end) for start, end in zip(starts, ends, strict=True))
    return Layout(tuple(stretches), is_cut=not is_closed)


def _next_page(file: BinaryIO, place: int, size: int) -> int | None:
    while place < size:
        found = read_at(file, place, _SEARCH_BYTES).find(b"OggS")
        if found >= 0:
            return place + found
        place += _SEARCH_BYTES - 3
    return None
