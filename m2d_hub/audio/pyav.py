"""Decoding with PyAV (FFmpeg): bytes only, by a fixed list of demuxers, to the real end of the audio."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import re
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from m2d_hub.audio.inputs import mix, scaled

logger = logging.getLogger(__name__)

# The only demuxers that FFmpeg may use: none of them opens other files, as playlists do.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gsm,matroska,mov,mp3,mpc,mpc8,mpegts,ogg,rm,tak,tta,"
    "voc,w64,wav,wv"
)
_RESYNCING = {"mp3", "aac"}  # demuxers of frames without a container, which skip what is between them
_ESTIMATING = {"aac", "ac3", "eac3", "amr", "dts", "mpegts"}  # demuxers that guess a length by the bit rate
_MP3_FRAME_COUNT = re.compile(rb"(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](.{4})", re.DOTALL)
_SEEKABLE = {"mp3"}  # demuxers that seek to the sample; others are decoded from their start
_SEEK_LEAD_S = 1.0  # decoded before a position: MP3 frames refer to earlier ones
_SLACK_S = 0.5  # by which containers state more than they hold, since encoders fill their last frame
UNKNOWN_SIZE = 0x7FFF_0000  # a 32-bit size from here on was not known when it was written, as 0


class FileBytes:
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


@contextlib.contextmanager
def open_container(file: Any, raw_format: str | None = None, **options: str) -> Iterator[tuple[Any, Any]]:
    """Open a file object with PyAV.

    Args:
        file: Has ``read``, and ``seek`` and ``tell`` if it is seekable. FFmpeg does not see its name.
        raw_format: The format of raw samples.
        options: Options of FFmpeg's demuxer.

    Yields:
        The container and its first audio stream.

    Raises:
        ValueError: There is no audio that can be decoded.
    """
    import av

    options |= {"protocol_whitelist": "none", "format_whitelist": raw_format or DEMUXERS}
    try:
        with av.open(
            file, format=raw_format, container_options=options, metadata_errors="ignore"
        ) as container:
            if not container.streams.audio:
                raise ValueError("it holds no audio")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("its codec is unknown")
            if stream.codec_context.name == "flac":
                stream.codec_context.options = {"err_detect": "explode"}  # damaged samples are an error
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from error  # without the name of a function of FFmpeg


def decoded_frames(container: Any, stream: Any) -> Generator[Any, None, None]:
    """Yield PyAV's frames of a stream, up to its end or to where it is truncated.

    Raises:
        ValueError: The sample rate changes, or samples are missing.
        FFmpegError: The stream is damaged, and continues after that. MP3 and AAC frames are skipped instead.
    """
    import av

    resyncs, is_flac = container.format.name in _RESYNCING, stream.codec_context.name == "flac"
    rate, end_s, damage = 0, None, None
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:  # also after an error of the demuxer
            break
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
                raise ValueError(f"its sample rate changes from {rate} to {frame.sample_rate} Hz")
            if is_flac and frame.time is not None:
                if end_s is not None and abs(frame.time - end_s) > 1e-3:
                    raise ValueError(f"samples at {end_s:.2f} s are missing")
                end_s = frame.time + frame.samples / rate
            yield frame
    if damage is not None and not rate:
        raise damage


def mono_blocks(frames: Iterator[Any], name: str, min_samples: int = 1 << 16) -> Iterator[Tensor]:
    """Yield blocks (s,), float32, channels averaged, of frames that are gathered to ``min_samples``."""
    import av

    for _, alike in itertools.groupby(frames, lambda frame: (frame.format.name, frame.layout.nb_channels)):
        fifo = av.AudioFifo()
        for frame in alike:
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


def _open_file(file: BinaryIO) -> contextlib.AbstractContextManager[tuple[Any, Any]]:
    head = read_head(file, 28)
    is_endless = head[:4] in (b"RIFF", b"RF64") and not stated_bytes(head)
    return open_container(FileBytes(file), **({"ignore_length": "1"} if is_endless else {}))


def av_header(file: BinaryIO) -> tuple[int, int]:
    """Return the sample rate and the number of samples that a file states, perhaps estimated or 0."""
    with _open_file(file) as (container, stream):
        frame = next(decoded_frames(container, stream), None)
        rate = stream.rate if frame is None else frame.sample_rate  # a codec may double it
        seconds = _stated_s(container, stream, file) or (container.duration or 0) / 1e6
        return rate, round(seconds * rate)


def av_blocks(file: BinaryIO, name: str, first: int, stop: int | None) -> Iterator[Tensor]:
    """Yield samples ``first`` to ``stop`` of what PyAV decodes; warn if the file ends early."""
    end = math.inf if stop is None else stop
    with _open_file(file) as (container, stream):
        rate, position, frames = _seek(container, stream, first)
        for block in mono_blocks(frames, name):
            begin, position = position, position + len(block)
            if position > first:
                yield block[max(0, first - begin) : int(min(end, position)) - begin]
            if position >= end:
                return
        seconds = _stated_s(container, stream, file)
        if position and position / rate + _SLACK_S < seconds:
            warn_of_cut(name, position / rate, seconds)


def _seek(container: Any, stream: Any, first: int) -> tuple[int, int, Iterator[Any]]:
    """Return the sample rate, a position at or before ``first``, and the frames from there on."""
    frames = decoded_frames(container, stream)
    frame = next(frames, None)
    if frame is None:
        return stream.rate, 0, frames
    rate, start_s = frame.sample_rate, frame.time
    if container.format.name in _SEEKABLE and first > 2 * _SEEK_LEAD_S * rate:
        frames.close()
        target_s = start_s + first / rate - _SEEK_LEAD_S
        container.seek(int(target_s / stream.time_base), stream=stream)
        frames = decoded_frames(container, stream)
        frame = next(frames, None)
        if frame is None:
            return rate, first, frames
    position = 0 if frame.time is None else round((frame.time - start_s) * rate)
    return rate, position, itertools.chain([frame], frames)


def _stated_s(container: Any, stream: Any, file: BinaryIO) -> float:
    """Return the seconds that a header states, 0 if it does not; ends the reading of ``file``."""
    kind, rate = container.format.name, stream.rate
    if kind == "mp3":
        found = _MP3_FRAME_COUNT.search(read_head(file, 1 << 16))
        return int.from_bytes(found[1], "big") * (1_152 if rate >= 32_000 else 576) / rate if found else 0.0
    if kind in _ESTIMATING:
        return 0.0
    if kind in ("aiff", "caf"):
        return stream.frames / rate
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def read_head(file: BinaryIO, num_bytes: int) -> bytes:
    """Return the first bytes of a file, and go back to its start."""
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
    if not 0 < size < UNKNOWN_SIZE:
        return 0
    return size + (big if magic == b".snd" else 8)


def warn_of_cut(name: str, seconds: float, stated_s: float) -> None:
    """Warn that a file ends early."""
    text = "%s ends at %.2f s, before the %.2f s that its header states; it may be truncated."
    logger.warning(text, name, seconds, stated_s)
