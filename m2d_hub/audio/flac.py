"""FLAC: whether the last frame ends where the header says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

from m2d_hub.audio.layout import Layout, Stretch, after_id3, number, read_at

_TOTAL_AT = 21  # of the bytes from "fLaC" on, whose last 36 bits count the samples; 0: unknown
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_TAIL_BYTES = 1 << 18
_BLOCK_SAMPLES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608} | {code: 1 << code for code in range(8, 16)}
_RATES = (
    88_200,
    176_400,
    192_000,
    8000,
    16_000,
    22_050,
    24_000,
    32_000,
    44_100,
    48_000,
    96_000,
)  # from code 1
_RATE_UNITS = {12: 1000, 13: 1, 14: 10}  # Hz, of a rate that follows the number
_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
_STEREO_CODES = (8, 9, 10)  # two channels, one of them as a difference


@dataclass(frozen=True)
class _Stream:
    """What the header says of all frames; what looks like a frame of another stream is none."""

    block_samples: int
    most_samples: int  # of a frame
    rate: int
    channels: int
    bits: int

    @classmethod
    def told(cls, head: bytes) -> _Stream:
        """Of the bytes from "fLaC" on."""
        packed = number(head, 18, 4)  # 20 bits of rate, 3 of channels, 5 of bits a sample, 4 of the length
        return cls(
            number(head, 8, 2),
            number(head, 10, 2),
            packed >> 12,
            (packed >> 9 & 7) + 1,
            (packed >> 4 & 31) + 1,
        )


def find_layout(file: BinaryIO, size: int) -> Layout:
    """Looks behind headers that count too few samples, or too many."""
    start = after_id3(file, 0)
    head = read_at(file, start, 26)
    told = number(head, _TOTAL_AT, 5) & (1 << 36) - 1
    if not told:
        return Layout()
    last = _last_frame(file, size, _Stream.told(head))
    if last is None or last[1] == told:
        return Layout()
    unknown = {_TOTAL_AT: bytes([head[_TOTAL_AT] & 0xF0]) + bytes(4)}
    announced = max(1.0, told / max(1, last[0]))
    return Layout((Stretch(start, None, patches=unknown),), announced, is_cut=told > last[1])


def _last_frame(file: BinaryIO, size: int, stream: _Stream) -> tuple[int, int] | None:
    """The last frame's first sample and the one after its last, by its own header."""
    place = max(0, size - _TAIL_BYTES)
    data = read_at(file, place, _TAIL_BYTES)
    for match in reversed(list(_SYNC.finditer(data))):
        frame = _frame(data[match.start() : match.start() + 16], stream)
        if frame is not None:
            return frame
    return None


def _frame(head: bytes, stream: _Stream) -> tuple[int, int] | None:
    """A frame's first sample and the one after its last; None: it is no header of a frame of this stream."""
    if len(head) < 6 or head[3] & 1:
        return None
    code, rate_code, channel_code, bits_code = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    if channel_code != stream.channels - 1 and not (channel_code in _STEREO_CODES and stream.channels == 2):
        return None
    if bits_code and _BITS.get(bits_code) != stream.bits:
        return None
    first, place = _coded_number(head)
    if first is None:
        return None
    samples = _BLOCK_SAMPLES.get(code, 0)
    if code in (6, 7):
        samples = number(head, place, code - 5) + 1
        place += code - 5
    rate = _RATES[rate_code - 1] if 1 <= rate_code <= len(_RATES) else stream.rate
    if rate_code in _RATE_UNITS:
        following = 1 if rate_code == 12 else 2
        rate = _RATE_UNITS[rate_code] * number(head, place, following)
        place += following
    if rate != stream.rate or rate_code == 15 or not 1 <= samples <= stream.most_samples:
        return None
    if place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    first *= 1 if head[1] & 1 else stream.block_samples
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
