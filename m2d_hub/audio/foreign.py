"""What phones, messengers and video sites write and libsndfile does not read, by PyAV (FFmpeg's libraries).

The kind is known by a file's first bytes and told to FFmpeg, which is given bytes only: no file can make it
look at other files or at the network, as playlists would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from m2d_hub.audio.layout import after_id3, read_at
from m2d_hub.audio.waveforms import mixed
from m2d_hub.errors import AudioError
from m2d_hub.io import importing

_MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"\x30\x26\xb2\x75": "asf",
    b"wvpk": "wv",
    b"MAC ": "ape",
    b"#!AM": "amr",
}
_BLOCK_SAMPLES = 1 << 16  # that decoded frames are gathered to
_SLACK_S = 0.5  # by which containers announce more than is there, as encoders fill their last frame


def kind_of(file: BinaryIO) -> str | None:
    """FFmpeg's name of a file's kind; None: the file is left to libsndfile."""
    head = read_at(file, after_id3(file, 0), 8)
    file.seek(0)
    if head[4:8] == b"ftyp":
        return "mov"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # without an MPEG layer: ADTS
        return "aac"
    return _MAGIC.get(head[:4])


def describe(file: BinaryIO, kind: str, name: str) -> tuple[int, float]:
    """Sampling rate of the first audio stream in Hz, and the seconds that are announced; 0: none are.

    Raises:
        AudioError: It cannot be read; the message names it.
    """
    with _opened(file, kind, name) as (container, stream):
        return next(container.decode(stream)).sample_rate, _announced_s(container, stream, kind)


@dataclass(frozen=True)
class Block:
    """A stretch of waveform."""

    samples: Tensor  # (s,) float32
    sample_rate: int  # Hz
    announced_s: float  # seconds of the whole stream, as its header has it; 0: it does not say

    def is_cut(self, num_samples: int) -> bool:
        """Whether so many samples in all are fewer than were announced."""
        return num_samples / self.sample_rate + _SLACK_S < self.announced_s


def decode(file: BinaryIO, kind: str, name: str, size: int) -> Iterator[Block]:
    """The first audio stream, channels averaged; of a file that was cut off, what is there.

    Raises:
        AudioError: It cannot be read; the message names it.
    """
    with _opened(file, kind, name) as (container, stream):
        announced_s = _announced_s(container, stream, kind)
        waiting: list[np.ndarray] = []
        rate = 0
        for rate, samples in _frames(container, stream, name, file, size):
            waiting.append(samples)
            if sum(map(len, waiting)) >= _BLOCK_SAMPLES:
                yield Block(torch.from_numpy(np.concatenate(waiting)), rate, announced_s)
                waiting = []
        if waiting:
            yield Block(torch.from_numpy(np.concatenate(waiting)), rate, announced_s)


def _frames(
    container: Any, stream: Any, name: str, file: BinaryIO, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    import av

    # Interleaved, in one plane: of eight or more, PyAV reads one that is not there, which ends the program.
    resampler, rate = av.AudioResampler(format="flt"), 0
    try:
        for frame in container.decode(stream):
            rate = rate or frame.sample_rate
            if frame.sample_rate != rate:
                raise AudioError(f"{name} changes its sample rate from {rate} to {frame.sample_rate} Hz.")
            frame.pts = None  # gaps in time are no matter here
            for plain in resampler.resample(frame):
                yield rate, mixed(plain.to_ndarray().reshape(-1, plain.layout.nb_channels))
    except av.FFmpegError:
        if not rate or file.tell() < size:  # else the last packet is not whole
            raise


def _announced_s(container: Any, stream: Any, kind: str) -> float:
    if kind in ("aac", "amr"):  # guessed by their size
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


@contextlib.contextmanager
def _opened(file: BinaryIO, kind: str, name: str) -> Iterator[tuple[Any, Any]]:
    way_out = "Or convert it, for instance: ffmpeg -i INPUT OUTPUT.flac"
    with importing("PyAV", f"{name} is of a kind ({kind}) that", "formats", way_out, AudioError):
        import av
    file.seek(0)
    with av.open(file, format=kind, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise AudioError(f"{name} holds no audio.")
        yield container, container.streams.audio[0]
