"""MP3 and MP2: their frames are counted where no header can be trusted to do so."""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from typing import BinaryIO

from m2d_hub.audio.layout import Layout, Stretch, after_id3, number, read_at

# kbit/s by the header's four bits, for MPEG-1 layers I to III, then for MPEG-2 layer I, and II with III.
_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)  # of MPEG-1; half of it in MPEG-2, a quarter in 2.5
_ENDLESS_BYTES = 1 << 40  # more than a file has, few enough for libmpg123
_SEARCH_BYTES = 1 << 16
_READ_BYTES = 1 << 20
_HEAD_BYTES = 64  # of a frame: its header, and a tag that counts the frames
_LAST_TAG_PLACE = 36  # of such a tag in its frame
_TAG = re.compile(rb"Xing|Info|VBRI")
_SYNC = re.compile(rb"\xff[\xe2-\xff]", re.DOTALL)


@dataclass
class _Song:
    """One of the files that were joined."""

    start: int
    told_frames: int | None  # by a frame without audio before the others; None: there is none
    audio_start: int  # after that
    num_frames: int = 0


def find_layout(file: BinaryIO, size: int) -> Layout:
    """Tells joined files apart, and looks behind headers that count too few frames."""
    first = _find_frame(file, 0, size)
    songs = [] if first is None else _walk(file, first, size)
    if not songs:
        return Layout()
    ends = [*(song.start for song in songs[1:]), None]
    stretches = tuple(_stretch(song, end) for song, end in zip(songs, ends, strict=True))
    last = songs[-1]
    announced = 1.0 if last.told_frames is None else last.told_frames / max(1, last.num_frames)
    is_cut = (announced - 1) * last.num_frames > 2
    is_true = len(songs) == 1 and stretches[0].told_bytes is None
    return Layout((Stretch(),) if is_true else stretches, announced, is_cut)


def _stretch(song: _Song, end: int | None) -> Stretch:
    if song.told_frames is not None and song.told_frames >= song.num_frames:
        return Stretch(song.start, end)
    # Told to be endless, and without what counts its frames, it is decoded to its end.
    return Stretch(song.audio_start, end, told_bytes=_ENDLESS_BYTES)


def _walk(file: BinaryIO, first: int, size: int) -> list[_Song]:
    lengths = _frame_lengths()
    songs: list[_Song] = []
    data, data_start, tags = b"", 0, []
    place: int | None = first
    while place is not None and place < size - 3:
        if not data_start <= place <= data_start + len(data) - _HEAD_BYTES:
            data, data_start = read_at(file, place, _READ_BYTES), place
            tags = [match.start() for match in _TAG.finditer(data)]
        at = place - data_start
        if len(data) < at + 3:  # the file is shorter than it was
            break
        length = lengths.get(data[at + 1] << 8 | data[at + 2], 0) if data[at] == 0xFF else 0
        if not length:
            place = _find_frame(file, place, size)
            continue
        is_tag = bool(tags) and any(4 <= tag - at <= _LAST_TAG_PLACE for tag in tags)
        if is_tag or not songs:
            told = _told_frames(data[at : at + _HEAD_BYTES]) if is_tag else None
            songs.append(_Song(place, told, place + length if is_tag else place))
        songs[-1].num_frames += not is_tag
        place += length
    return songs


def _find_frame(file: BinaryIO, place: int, size: int) -> int | None:
    """The next place with a frame that another one follows."""
    place = after_id3(file, place)
    while place < size:
        data = read_at(file, place, _SEARCH_BYTES)
        for match in _SYNC.finditer(data):
            start = place + match.start()
            length = _frame_bytes(data[match.start() : match.start() + 4])
            if length and (start + length >= size or _frame_bytes(read_at(file, start + length, 4))):
                return start
        place += max(1, len(data) - 3)
    return None


def _frame_bytes(head: bytes) -> int:
    """Length of a frame by its header; 0: it is none."""
    return _frame_lengths().get(head[1] << 8 | head[2], 0) if len(head) > 2 and head[0] == 0xFF else 0


@functools.cache
def _frame_lengths() -> dict[int, int]:
    """Bytes of a frame by the second and third byte of its header."""
    lengths = {}
    numbers = itertools.product((0, 2, 3), (1, 2, 3), range(1, 15), range(3), range(2), range(2), range(2))
    for version, layer, bitrate, rate, padding, protection, private in numbers:  # version 0 is 2.5, 3 is 1
        generation = 1 if version == 3 else 2
        bits = 1_000 * _KBITS[generation, layer if generation == 1 else min(layer, 2)][bitrate - 1]
        hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
        if layer == 1:
            length = (12 * bits // hz + padding) * 4
        else:
            length = (72 if layer == 3 and generation == 2 else 144) * bits // hz + padding
        second = 0xE0 | version << 3 | (4 - layer) << 1 | protection
        lengths[second << 8 | bitrate << 4 | rate << 2 | padding << 1 | private] = length
    return lengths


def _told_frames(frame: bytes) -> int | None:
    """How many frames are to follow, by one that holds a tag."""
    match = _TAG.search(frame)
    if match is None:
        return None
    values = frame[match.end() :]
    if match[0] == b"VBRI":
        return number(values, 10, 4)
    return number(values, 4, 4) if number(values, 0, 4) & 1 else None
