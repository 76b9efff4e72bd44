"""FLAC: whether the last frame ends where the header says."""

from __future__ import annotations

import re
from typing import BinaryIO

from m2d_hub.audio.layout import Layout, Stretch, after_id3, number, read_at

_TOTAL_AT = 21  # of the bytes from "fLaC" on, whose last 36 bits count the samples; 0: unknown
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_TAIL_BYTES = 1 << 18
_BLOCK_SAMPLES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608} | {code: 1 << code for code in range(8, 16)}


def find_layout(file: BinaryIO, size: int) -> Layout:
    """Looks behind headers that count too few samples, or too many."""
    start = after_id3(file, 0)
    head = read_at(file, start, 26)
    told = number(head, _TOTAL_AT, 5) & (1 << 36) - 1
    if not told:
        return Layout()
    last = _last_frame(file, size, number(head, 8, 2))
    if last is None or last[1] == told:
        return Layout()
    unknown = {_TOTAL_AT: bytes([head[_TOTAL_AT] & 0xF0]) + bytes(4)}
    announced = max(1.0, told / max(1, last[0]))
    return Layout((Stretch(start, None, patches=unknown),), announced, is_cut=told > last[1])


def _last_frame(file: BinaryIO, size: int, block_samples: int) -> tuple[int, int] | None:
    """The last frame's first sample and the one after its last, by its own header."""
    place = max(0, size - _TAIL_BYTES)
    data = read_at(file, place, _TAIL_BYTES)
    for match in reversed(list(_SYNC.finditer(data))):
        frame = _frame(data[match.start() : match.start() + 16], block_samples)
        if frame is not None:
            return frame
    return None


def _frame(head: bytes, block_samples: int) -> tuple[int, int] | None:
    """A frame's first sample and the one after its last; None: it is no header."""
    if len(head) < 6 or head[2] >> 4 == 0 or head[2] & 15 == 15 or head[3] & 1 or head[3] >> 4 > 10:
        return None
    first, place = _coded_number(head)
    if first is None:
        return None
    code, rate = head[2] >> 4, head[2] & 15
    samples = _BLOCK_SAMPLES.get(code, 0)
    if code in (6, 7):
        samples = number(head, place, code - 5) + 1
        place += code - 5
    place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    first *= 1 if head[1] & 1 else block_samples
    return first, first + samples


def _coded_number(head: bytes) -> tuple[int | None, int]:
    """The frame's or sample's number, which is coded like a letter of UTF-8, and the place after it."""
    byte = head[4]
    more = 0 if byte < 0x80 else 7 - (byte ^ 0xFF).bit_length()  # leading ones, less this byte
    following = head[5 : 5 + more]
    if 0x80 <= byte < 0xC0 or byte == 0xFF or any(part >> 6 != 2 for part in following):
        return None, 0
    value = byte if not more else byte & (1 << 6 - more) - 1
    for part in following:
        value = value << 6 | part & 0x3F
    return value, 5 + more


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x107 if crc & 0x80 else 0)) & 0xFF
    return crc
