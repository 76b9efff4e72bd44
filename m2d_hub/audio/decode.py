"""Decoding of audio files to blocks of mono waveform, by soundfile and PyAV.

soundfile decodes WAV, FLAC, AIFF, AU, CAF and other formats of libsndfile. PyAV (FFmpeg) decodes MP3, Ogg,
M4A, WebM and all others, and files that soundfile refuses or whose header states no length.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from m2d_hub.audio.inputs import check_rate, mix
from m2d_hub.audio.pyav import FileBytes, av_blocks, av_header, read_head, stated_bytes, warn_of_cut
from m2d_hub.audio.stored import StoredFile
from m2d_hub.errors import AudioError
from m2d_hub.io import reading

BLOCK_S = 5.0  # maximum seconds per block
BLOCK_VALUES = 1 << 20  # maximum samples of all channels per block
_MAX_SAMPLES_PER_BYTE = 64  # of the densest speech codecs: a header that states more is not believed
_PYAV_MAGIC = (b"OggS", b"ID3", b"\xff")  # Ogg and MP3, of which soundfile does not reach every real end


def read_header(source: Path | StoredFile | BinaryIO, name: str) -> tuple[int, int, bool]:
    """Check that a file can be decoded and return what it states.

    Args:
        source: A path, a stored file, or a seekable file object.
        name: The file's name in messages.

    Returns:
        The sample rate in Hz; the samples per channel, at most what the bytes can hold, 0 if unknown; and
        whether that number is exact.

    Raises:
        AudioError: It is empty, or cannot be decoded.
    """
    with reading_audio(name), _open_bytes(source) as (file, size):
        if not size:
            raise AudioError(f"{name} is empty: it holds no samples.")
        if (sound := _open_sound(source, file, size)) is not None:
            with sound:
                rate, num_samples = sound.samplerate, sound.frames
        else:
            rate, num_samples = av_header(file)
        rate = check_rate(rate, f"the sample rate of {name}")
        return rate, min(num_samples, _MAX_SAMPLES_PER_BYTE * size), sound is not None


def decode(
    source: Path | StoredFile | BinaryIO, name: str, first: int = 0, stop: int | None = None
) -> Iterator[Tensor]:
    """Yield blocks (s,) of a file, float32, channels averaged, at the rate of its header.

    A file that ends before its header states is read to its end, with a warning.

    Args:
        source: A path, a stored file, or a seekable file object.
        name: The file's name in messages.
        first: The first sample.
        stop: The sample after the last one; None: the end of the file.

    Raises:
        AudioError: The file cannot be decoded.
    """
    position = first
    with reading_audio(name), _open_bytes(source) as (file, size):
        if (sound := _open_sound(source, file, size)) is not None:
            with sound:
                for block in _sound_blocks(sound, first, stop):
                    position += len(block)
                    yield block
                if position >= (sound.frames if stop is None else min(stop, sound.frames)):
                    stated = stated_bytes(read_head(file, 28))
                    if stated > size and (stop is None or stop > sound.frames):
                        seconds = sound.frames / sound.samplerate
                        warn_of_cut(name, seconds, seconds * stated / size)
                    return
        yield from av_blocks(file, name, position, stop)


def reading_audio(name: str) -> contextlib.AbstractContextManager[None]:
    """Raise every failure to read encoded audio as an AudioError with ``name``."""
    hint = "WAV, FLAC, Ogg, MP3, M4A, WebM, WMA and others are read; convert it: ffmpeg -i INPUT OUTPUT.flac"
    return reading(name, "audio", hint, AudioError)


@contextlib.contextmanager
def _open_bytes(source: Path | StoredFile | BinaryIO) -> Iterator[tuple[BinaryIO, int]]:
    """Open the bytes of a source, and count them."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
            file: BinaryIO = stack.enter_context(source.open("rb"))
        else:
            file = stack.enter_context(source.open()) if isinstance(source, StoredFile) else source
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        yield file, size


def _open_sound(source: Path | StoredFile | BinaryIO, file: BinaryIO, size: int) -> Any:
    """Open a file with soundfile; None: PyAV decodes it."""
    import soundfile

    if read_head(file, 4).startswith(_PYAV_MAGIC):
        return None
    target: Any = FileBytes(file)
    if isinstance(source, Path):  # bytes, since a name need not be UTF-8
        target = os.fsencode(source) if os.name == "posix" else str(source)
    try:
        sound = soundfile.SoundFile(target)
    except soundfile.LibsndfileError:
        file.seek(0)
        return None
    is_empty = sound.frames == 0 and stated_bytes(read_head(file, 28)) == size
    if not is_empty and not 0 < sound.frames <= _MAX_SAMPLES_PER_BYTE * size:
        sound.close()
        file.seek(0)
        return None
    sound.seekable = lambda: False  # SoundFile.read would seek before and after each block
    return sound


def _sound_blocks(sound: Any, first: int, stop: int | None) -> Iterator[Tensor]:
    """Yield blocks; fewer samples than stated where a file is damaged, which PyAV then decodes."""
    import soundfile

    left = (sound.frames if stop is None else min(stop, sound.frames)) - first
    if first and left > 0:
        sound.seek(first)
    max_samples = max(1, min(int(BLOCK_S * sound.samplerate), BLOCK_VALUES // sound.channels))
    while left > 0:
        block = np.zeros((0, 1), np.float32)
        with contextlib.suppress(soundfile.LibsndfileError):
            block = sound.read(min(max_samples, left), dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield torch.from_numpy(mix(block.T))
