"""Decoding of audio files to blocks of mono waveform, by soundfile and PyAV.

soundfile decodes WAV, FLAC, AIFF, AU, CAF and other formats of libsndfile. PyAV (FFmpeg) decodes MP3, Ogg,
M4A, WebM and all others, and files that soundfile refuses or whose header states no length.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from m2d_hub.audio.inputs import mix, scaled
from m2d_hub.audio.resample import check_rate
from m2d_hub.audio.stored import StoredFile
from m2d_hub.errors import AudioError
from m2d_hub.io import reading

logger = logging.getLogger(__name__)

BLOCK_S = 5.0  # maximum seconds per block
BLOCK_VALUES = 1 << 20  # maximum samples of all channels per block
# The only demuxers that FFmpeg may use: none of them opens other files, as playlists do.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,matroska,mov,mp3,mpc,mpc8,mpegts,ogg,rm,tak,tta,"
    "voc,w64,wav,wv"
)
_MAX_SAMPLES_PER_BYTE = 64  # of the densest speech codecs: a header that states more is not believed
_PYAV_MAGIC = (b"OggS", b"ID3", b"\xff")  # Ogg and MP3, of which soundfile does not reach every real end
_RESYNCING = {"mp3", "aac"}  # demuxers of frames without a container, which skip what is between them
_ESTIMATING = {"aac", "ac3", "eac3", "amr", "dts", "mpegts"}  # demuxers that guess a length by the bit rate
_MP3_FRAME_COUNT = re.compile(rb"(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](.{4})", re.DOTALL)
_SEEKABLE = {"mp3"}  # demuxers that seek to the sample; others are decoded from their start
_SEEK_LEAD_S = 1.0  # decoded before a position: MP3 frames refer to earlier ones
_SLACK_S = 0.5  # by which containers state more than they hold, since encoders fill their last frame
_UNKNOWN_SIZE = 0x7FFF_0000  # a 32-bit size from here on was not known when it was written, as 0


@dataclass(frozen=True)
class Header:
    """Sample rate and length that a file states."""

    sample_rate: int  # Hz
    num_samples: int  # per channel, at most what its bytes can hold; 0: unknown
    is_exact: bool  # whether the length is known to the sample


def read_header(source: Path | StoredFile | BinaryIO, name: str) -> Header:
    """Check that a file can be decoded and return what it states.

    Args:
        source: A path, a stored file, or a seekable file object.
        name: The file's name in messages.

    Raises:
        AudioError: It cannot be decoded.
    """
    with reading_audio(name), _open_bytes(source) as (file, size):
        if (sound := _open_sound(source, file, size)) is not None:
            with sound:
                rate, num_samples = sound.samplerate, sound.frames
        else:
            with open_container(_Bytes(file), name, _head(file, 28)) as (container, stream):
                frame = next(decoded_frames(container, stream, name), None)
                rate = (
                    stream.rate if frame is None else frame.sample_rate
                )  # a codec may double the stated rate
                seconds = _stated_s(container, stream, file) or (container.duration or 0) / 1e6
                num_samples = round(seconds * rate)
        rate = check_rate(rate, f"the sample rate of {name}")
        return Header(rate, min(num_samples, _MAX_SAMPLES_PER_BYTE * size), is_exact=sound is not None)


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
                    _warn_if_cut(name, sound, file, size, stop)
                    return
        yield from _av_blocks(file, size, name, position, stop)


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


class _Bytes:
    """A file object for C libraries: without a name, and without seeks to before its start.

    A damaged header asks for such seeks; an exception in a callback would be printed, not raised.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.read = file.tell, file.read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and not 0 <= offset < 1 << 62:
            return self.tell()
        return self._file.seek(offset, whence)


def _open_sound(source: Path | StoredFile | BinaryIO, file: BinaryIO, size: int) -> Any:
    """Open a file with soundfile; None: PyAV decodes it."""
    import soundfile

    head = _head(file, 4)
    if head.startswith(_PYAV_MAGIC):
        return None
    try:
        if isinstance(source, Path):
            target: Any = (
                os.fsencode(source) if os.name == "posix" else str(source)
            )  # any name, not only UTF-8
        else:
            target = _Bytes(file)
        sound = soundfile.SoundFile(target)
    except soundfile.LibsndfileError:
        file.seek(0)
        return None
    is_empty = sound.frames == 0 and stated_bytes(_head(file, 28)) == size
    if not is_empty and not 0 < sound.frames <= _MAX_SAMPLES_PER_BYTE * size:
        sound.close()
        file.seek(0)
        return None
    sound.seekable = lambda: False  # SoundFile.read would seek before and after each block
    return sound


def _sound_blocks(sound: Any, first: int, stop: int | None) -> Iterator[Tensor]:
    """Yield blocks; fewer samples than stated where a FLAC file is damaged."""
    import soundfile

    left = (sound.frames if stop is None else min(stop, sound.frames)) - first
    if first and left > 0:
        sound.seek(first)
    max_samples = max(1, min(int(BLOCK_S * sound.samplerate), BLOCK_VALUES // sound.channels))
    while left > 0:
        try:
            block = sound.read(min(max_samples, left), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            if sound.format == "FLAC":  # PyAV decodes it to where it is damaged
                return
            raise
        if not len(block):
            return
        left -= len(block)
        yield torch.from_numpy(mix(block.T))


def _warn_if_cut(name: str, sound: Any, file: BinaryIO, size: int, stop: int | None) -> None:
    stated = stated_bytes(_head(file, 28))
    if stated > size and (stop is None or stop > sound.frames):
        seconds = sound.frames / sound.samplerate
        warn_of_cut(name, seconds, seconds * stated / size)


def warn_of_cut(name: str, seconds: float, stated_s: float) -> None:
    """Warn that a file ends early."""
    logger.warning(
        "%s ends at %.2f s, before the %.2f s that its header states; it may be truncated.",
        name,
        seconds,
        stated_s,
    )


def _head(file: BinaryIO, num_bytes: int) -> bytes:
    file.seek(0)
    head = file.read(num_bytes)
    file.seek(0)
    return head


def stated_bytes(head: bytes) -> int:
    """Return the file size that a WAV, RF64, W64, AIFF or AU header of 28 bytes states; 0: unknown."""
    magic, little, big = head[:4], int.from_bytes(head[4:8], "little"), int.from_bytes(head[4:8], "big")
    if magic == b"riff":
        return int.from_bytes(head[16:24], "little")
    if magic == b"RF64":
        size = int.from_bytes(head[20:28], "little")
        return size + 8 if size else 0
    size = {b"RIFF": little, b"FORM": big, b".snd": int.from_bytes(head[8:12], "big")}.get(magic, 0)
    if not 0 < size < _UNKNOWN_SIZE:
        return 0
    return size + (big if magic == b".snd" else 8)


@contextlib.contextmanager
def open_container(file: Any, name: str, head: bytes = b"", **options: str) -> Iterator[tuple[Any, Any]]:
    """Open a file object with PyAV.

    Args:
        file: Has ``read``, and ``seek`` and ``tell`` if it is seekable. FFmpeg does not see its name.
        name: The file's name in messages.
        head: The first 28 bytes, to recognise WAV without a length.
        options: Options of FFmpeg's demuxer.

    Yields:
        The container and its first audio stream.

    Raises:
        AudioError: There is no audio that can be decoded.
    """
    import av

    options |= {"protocol_whitelist": "none", "format_whitelist": DEMUXERS}
    if head[:4] in (b"RIFF", b"RF64") and not stated_bytes(head):
        options["ignore_length"] = "1"
    try:
        with av.open(file, container_options=options, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{name} holds no audio.")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(f"{name} holds audio of an unknown codec.")
            if stream.codec_context.name == "flac":
                stream.codec_context.options = {"err_detect": "explode"}  # damaged samples are an error
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from error  # without the name of a function of FFmpeg


def decoded_frames(
    container: Any, stream: Any, name: str, is_at_end: Callable[[], bool] = lambda: True
) -> Generator[Any, None, None]:
    """Yield PyAV's frames of a stream, up to its end or to where it is truncated.

    Args:
        container: The opened container.
        stream: Its audio stream.
        name: The file's name in messages.
        is_at_end: Whether the file has been read to its end, where an error means that it is truncated.

    Raises:
        AudioError: The sample rate changes, or samples are missing.
        FFmpegError: The stream is damaged, and continues after that. MP3 and AAC frames are skipped instead.
    """
    import av

    resyncs, is_flac = container.format.name in _RESYNCING, stream.codec_context.name == "flac"
    rate, end_s, damage = 0, None, None
    packets = container.demux(stream)
    while True:
        try:
            if (packet := next(packets, None)) is None:
                break
        except av.FFmpegError as error:
            if not rate or not is_at_end():
                raise
            damage = error
            break
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage = error
            continue
        for frame in frames:
            if damage is not None and not resyncs:
                raise damage
            rate = rate or frame.sample_rate
            if frame.sample_rate != rate:
                if resyncs:
                    continue
                raise AudioError(f"{name} changes its sample rate from {rate} to {frame.sample_rate} Hz.")
            if is_flac and frame.time is not None:
                if end_s is not None and abs(frame.time - end_s) > 1e-3:
                    raise AudioError(f"{name} is damaged: samples at {end_s:.2f} s are missing.")
                end_s = frame.time + frame.samples / rate
            yield frame
    if damage is not None and not rate:
        raise damage


def mono_blocks(frames: Iterator[Any], name: str, min_samples: int = 1 << 16) -> Iterator[Tensor]:
    """Yield blocks (s,), float32, channels averaged, of frames that are gathered to ``min_samples``."""
    import av

    fifo, gathered = av.AudioFifo(), None
    for frame in frames:
        kind = frame.format.name, frame.layout.nb_channels
        if kind != gathered:
            if fifo.samples:
                yield _mono(fifo.read(), name)
            fifo, gathered = av.AudioFifo(), kind
        frame.pts = None  # AudioFifo refuses gaps in time
        fifo.write(frame)
        if fifo.samples >= min_samples:
            yield _mono(fifo.read(), name)
    if fifo.samples:
        yield _mono(fifo.read(), name)


def _mono(frame: Any, name: str) -> Tensor:
    import av

    if frame.format.is_planar and frame.layout.nb_channels >= 8:  # PyAV would read planes that do not exist
        [frame] = av.AudioResampler(format="flt").resample(frame)
    samples = scaled(torch.from_numpy(frame.to_ndarray()), name).numpy()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return torch.from_numpy(mix(samples))


def _av_blocks(file: BinaryIO, size: int, name: str, first: int, stop: int | None) -> Iterator[Tensor]:
    """Yield samples ``first`` to ``stop`` of what PyAV decodes; warn if the file ends early."""
    end = math.inf if stop is None else stop
    with open_container(_Bytes(file), name, _head(file, 28)) as (container, stream):
        rate, position, frames = _seek(container, stream, name, first, lambda: file.tell() >= size)
        for block in mono_blocks(frames, name):
            begin, position = position, position + len(block)
            if position > first:
                yield block[max(0, first - begin) : int(min(end, position)) - begin]
            if position >= end:
                return
        stated_s = _stated_s(container, stream, file)
        if position and position / rate + _SLACK_S < stated_s:
            warn_of_cut(name, position / rate, stated_s)


def _seek(
    container: Any, stream: Any, name: str, first: int, is_at_end: Callable[[], bool]
) -> tuple[int, int, Iterator[Any]]:
    """Return the sample rate, a position at or before ``first``, and the frames from there on."""
    frames = decoded_frames(container, stream, name, is_at_end)
    frame = next(frames, None)
    if frame is None:
        return stream.rate, 0, frames
    rate, start_s = frame.sample_rate, frame.time
    if container.format.name in _SEEKABLE and first > 2 * _SEEK_LEAD_S * rate:
        frames.close()
        target_s = start_s + first / rate - _SEEK_LEAD_S
        container.seek(int(target_s / stream.time_base), stream=stream)
        frames = decoded_frames(container, stream, name, is_at_end)
        frame = next(frames, None)
        if frame is None:
            return rate, first, frames
    position = 0 if frame.time is None else round((frame.time - start_s) * rate)
    return rate, position, itertools.chain([frame], frames)


def _stated_s(container: Any, stream: Any, file: BinaryIO) -> float:
    """Return the seconds that a header states, 0 if it does not; ends the reading of ``file``."""
    kind, rate = container.format.name, stream.rate
    if kind == "mp3":
        found = _MP3_FRAME_COUNT.search(_head(file, 1 << 16))
        return int.from_bytes(found[1], "big") * (1_152 if rate >= 32_000 else 576) / rate if found else 0.0
    if kind in _ESTIMATING:
        return 0.0
    if kind in ("aiff", "caf"):
        return stream.frames / rate
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6
