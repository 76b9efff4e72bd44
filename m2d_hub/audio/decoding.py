"""A file of encoded audio to blocks of mono waveform, to its real end, by libsndfile."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from m2d_hub.audio import flac, foreign, mpeg, ogg, pcm
from m2d_hub.audio.layout import Layout, Stretch, StretchReader, read_at
from m2d_hub.audio.resample import check_rate, resample
from m2d_hub.audio.stored import StoredFile
from m2d_hub.audio.waveforms import mixed
from m2d_hub.errors import AudioError
from m2d_hub.io import reading

logger = logging.getLogger(__name__)

BLOCK_S = 20.0  # seconds read at a time, at most
BLOCK_VALUES = 1 << 20  # samples of all channels read at a time, at most
_UNKNOWN_FRAMES = 1 << 40  # libsndfile's answer where a header does not say
_SAMPLES_PER_BYTE = 64  # of the densest speech codecs: no header may promise more
_MP3_LEAD_SAMPLES = 10 * 1_152  # decoded before a place that was sought, as MP3 frames refer to earlier ones
_CUT_FLAC_SAMPLES = 1_152  # read at a time where the end is missing: a read that fails loses its samples
_LAYOUTS: dict[str, Callable[[BinaryIO, int], Layout]] = {
    **{"MP3": mpeg.find_layout, "OGG": ogg.find_layout, "FLAC": flac.find_layout},
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"), pcm.find_layout),
}


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    sample_rate: int  # Hz
    num_samples: int  # of one channel, no more than its bytes can hold; 0: it does not say


def read_header(source: Path | StoredFile | BinaryIO, name: str, is_exact: bool = False) -> Header:
    """Opens a file to see whether it can be read.

    Args:
        source: A path, a file that is stored, or a file object that can be sought.
        name: For messages.
        is_exact: Tell a number of samples only where the header can be trusted.

    Raises:
        AudioError: It cannot; the message names it.
    """
    with reading_audio(name), _binary(source) as (file, size):
        if (kind := foreign.kind_of(file)) is not None:
            rate, seconds = foreign.describe(file, kind, name)
            frames = 0 if is_exact else round(seconds * rate)
        else:
            with _open_whole(source, file, size, name) as sound:
                rate, frames = sound.samplerate, sound.frames
                is_unknown = not 0 <= frames < _UNKNOWN_FRAMES
                if is_unknown or (is_exact and _find_layout(sound.format, file, size) != Layout()):
                    frames = 0
        rate = check_rate(rate, f"the sample rate of {name}")
        return Header(rate, min(frames, _SAMPLES_PER_BYTE * size))


def decode(
    source: Path | StoredFile | BinaryIO, name: str, first: int = 0, stop: int | None = None
) -> Iterator[Tensor]:
    """Blocks (s,) of a file, float32, channels averaged, at the rate of its header.

    Where the audio ends before the header says, what is there is read, and a warning tells.

    Args:
        source: A path, a file that is stored, or a file object that can be sought.
        name: For messages.
        first: Sample to begin with.
        stop: The one after the last; None: the end of the file.

    Raises:
        AudioError: The file cannot be read; the message names it.
    """
    with reading_audio(name), _binary(source) as (file, size):
        kind = foreign.kind_of(file)
        blocks = (
            _decode(source, file, size, name, first, stop)
            if kind is None
            else _decode_foreign(file, size, kind, name, stop)
        )
        for place, block in blocks:
            skipped = max(0, first - place)
            wanted = block[skipped:] if stop is None else block[skipped : max(0, stop - place)]
            if len(wanted):
                yield wanted


def _decode(
    source: Path | StoredFile | BinaryIO, file: BinaryIO, size: int, name: str, first: int, stop: int | None
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of what libsndfile reads, with the place of each; those before ``first`` may be left out."""
    with _open_whole(source, file, size, name) as whole:
        layout = _find_layout(whole.format, file, size)
        place = _seek(whole, first) if first and layout.stretches == (Stretch(),) else 0
        left = math.inf if stop is None else max(0, stop - place)
        for block in _joined(whole, layout, file, size, name, left):
            yield place, block
            place += len(block)
        if layout.is_cut and (stop is None or place < stop):
            seconds = place / whole.samplerate
            _warn_of_cut(name, seconds, layout.announced * seconds if layout.announced > 1 else None)


def _decode_foreign(
    file: BinaryIO, size: int, kind: str, name: str, stop: int | None
) -> Iterator[tuple[int, Tensor]]:
    place = 0
    for block in foreign.decode(file, kind, name, size):
        yield place, block.samples
        place += len(block.samples)
        if stop is not None and place >= stop:
            return
    if place and block.is_cut(place):
        _warn_of_cut(name, place / block.sample_rate, block.announced_s)


def _joined(
    whole: Any, layout: Layout, file: BinaryIO, size: int, name: str, left: float
) -> Iterator[Tensor]:
    """Blocks of all stretches, ``left`` samples at most."""
    for stretch in layout.stretches:
        with contextlib.ExitStack() as stack:
            sound = whole
            if stretch != Stretch():
                sound = stack.enter_context(_sound_file(StretchReader(file, stretch, size), name))
            blocks = _blocks(sound, left, is_cut=layout.is_cut)
            if sound.samplerate != whole.samplerate:
                blocks = resample(blocks, check_rate(sound.samplerate, f"{name}: a rate"), whole.samplerate)
            for block in blocks:
                left -= len(block)
                yield block


def _blocks(sound: Any, left: float, is_cut: bool) -> Iterator[Tensor]:
    import soundfile

    most = max(1, min(int(BLOCK_S * sound.samplerate), BLOCK_VALUES // sound.channels))
    is_cut_flac = is_cut and sound.format == "FLAC"
    if is_cut_flac:
        most = min(most, _CUT_FLAC_SAMPLES)
    left = min(left, sound.frames)
    while left > 0:
        try:
            block = sound.read(int(min(most, left)), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            if is_cut_flac:
                return
            raise
        if not len(block):
            return
        left -= len(block)
        yield torch.from_numpy(mixed(block))


def _seek(sound: Any, place: int) -> int:
    place = min(place, sound.frames)
    lead = min(place, _MP3_LEAD_SAMPLES) if sound.format == "MP3" else 0
    sound.seek(place - lead)
    sound.read(lead, dtype="float32")
    return place


def _warn_of_cut(name: str, seconds: float, announced_s: float | None) -> None:
    logger.warning(
        "%s ends at %.2f s, %s: it may have been cut off. What is there is read.",
        name,
        seconds,
        "without a mark of its end"
        if announced_s is None
        else f"before the {announced_s:.2f} s that its header announces",
    )


def _find_layout(format_name: str, file: BinaryIO, size: int) -> Layout:
    find = _LAYOUTS.get(format_name)
    if find is None:
        return Layout()
    place = file.tell()
    layout = find(file, size)
    file.seek(place)
    return layout


@contextlib.contextmanager
def _binary(source: Path | StoredFile | BinaryIO) -> Iterator[tuple[BinaryIO, int]]:
    """The bytes of a source, and how many they are."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
            file: BinaryIO = stack.enter_context(source.open("rb"))
        else:
            file = stack.enter_context(source.open()) if isinstance(source, StoredFile) else source
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        yield file, size


def _open_whole(source: Path | StoredFile | BinaryIO, file: BinaryIO, size: int, name: str) -> Any:
    """A SoundFile of a file as it is, or with its length put right where it cannot be opened otherwise."""
    try:
        return _sound_file(source if isinstance(source, Path) else file, name)
    except AudioError:
        magic = read_at(file, 0, 4)
        is_mpeg = magic[:3] == b"ID3" or magic[:1] == b"\xff"
        if magic not in pcm.MAGIC and not is_mpeg:
            raise
        stretch = _find_layout("MP3" if is_mpeg else "WAV", file, size).stretches[0]
        if stretch == Stretch():
            raise
        return _sound_file(StretchReader(file, stretch, size), name)


class _SoughtByHeaders:
    """A file that stays where it is when a damaged header sends libsndfile to a place before its start.

    An error there would go through C: Python would print it and go on.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tell = file.tell
        self.read = file.read
        if hasattr(file, "readinto"):
            self.readinto = file.readinto

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset < 0:
            return self.tell()
        return self.file.seek(offset, whence)


def _sound_file(source: Any, name: str) -> Any:
    import soundfile

    if isinstance(source, Path):
        source = os.fsencode(source) if os.name == "posix" else str(source)  # names that are no UTF-8
    else:
        source = _SoughtByHeaders(source)
    with reading_audio(name):
        sound = soundfile.SoundFile(source)
    # A seekable file is sought before and after each read, from where MP3 goes on with wrong samples and FLAC
    # of unknown length not at all.
    sound.seekable = lambda: False
    return sound


def reading_audio(name: str) -> contextlib.AbstractContextManager[None]:
    """The door to a file of encoded audio."""
    way_out = (
        "WAV, FLAC, Ogg, MP3 and what else libsndfile knows are read, and M4A, WebM, WMA and the like with "
        "pip install 'm2d-hub[formats]'; convert others first, for instance: ffmpeg -i INPUT OUTPUT.flac"
    )
    return reading(name, "audio", way_out, AudioError)
