"""Clips: audio of any kind as blocks of mono waveform at the model's rate.

A file is opened once to read its header, so that an unreadable one is reported before work starts, and
decoded block by block when its turn comes.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from m2d_hub.audio.decode import BLOCK_S, BLOCK_VALUES, decode, read_header, reading_audio
from m2d_hub.audio.inputs import AudioInput, Channels, check_rate, checked, to_waveform, unpack
from m2d_hub.audio.resample import resample, resampled_length, resampling_steps
from m2d_hub.audio.stored import StoredFile
from m2d_hub.errors import AudioError
from m2d_hub.io import is_machine_fault, open_file

_SUFFIXES = (
    "wav wave flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf w64 rf64 sph voc gsm "
    "m4a m4b mp4 aac 3gp wma amr webm mka wv ape spx"
)
AUDIO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


@dataclass(frozen=True)
class AudioPart:
    """A part of an audio file: a path that :func:`open_audio` reads from one second to another."""

    path: str
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end of the file, as for an end beyond it

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        end = "its end" if self.end_s is None else f"{self.end_s} s"
        return f"{self.path} from {self.start_s} s to {end}"


class AudioClip(ABC):
    """One piece of audio that can be read several times or, if it is prefetched, once."""

    expected_samples: int  # as stated by the source

    @abstractmethod
    def blocks(self) -> Iterator[Tensor]:
        """Yield consecutive parts (s,) of the mono waveform at the requested rate, float32.

        Raises:
            AudioError: The audio is empty, non-finite or unreadable; the message names it.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release the clip, read or not."""


@dataclass(frozen=True)
class Clip(AudioClip):
    """One piece of audio, not yet read: a file, or a waveform in memory."""

    name: str  # for messages: the path, or the position in the caller's list
    source: Any  # path, stored file, file object, decoder of torchcodec, or mono float32 waveform (S,)
    source_rate: int  # Hz
    sample_rate: int  # Hz requested
    expected_samples: int  # at sample_rate, as stated by the source
    frames: tuple[int, int | None] = (0, None)  # of the file: the first, and the one after the last

    def blocks(self) -> Iterator[Tensor]:
        is_empty = True
        raw = checked(self.raw_blocks(*self.frames), self.name)
        for block in resample(raw, self.source_rate, self.sample_rate):
            is_empty = is_empty and not len(block)
            yield block
        if is_empty:
            raise AudioError(f"{self.name} is empty: it holds no samples.")

    def raw_blocks(self, first: int, stop: int | None) -> Iterator[Tensor]:
        """Yield blocks (s,) of the source's samples ``first`` to ``stop``, at its rate."""
        if isinstance(self.source, (Path, StoredFile)) or hasattr(self.source, "read"):
            yield from decode(self.source, self.name, first, stop)
        else:
            waveform = self.source
            if not isinstance(waveform, Tensor):
                with reading_audio(self.name):
                    waveform = to_waveform(self.source.get_all_samples().data, self.name, "mix")
            block_samples = min(BLOCK_VALUES, int(BLOCK_S * self.source_rate))
            yield from waveform[first:stop].split(block_samples)


def read_part(clip: Clip, start: int, stop: int) -> Tensor:
    """Read some samples of a clip without those before them.

    They are those of :meth:`Clip.blocks`; within 1e-5 (full scale is 1) if they are resampled.

    Args:
        clip: A result of :func:`open_audio`.
        start: The first sample, at the clip's ``sample_rate``.
        stop: The sample after the last one.

    Returns:
        (stop − start,) float32, or fewer samples where the audio ends before.

    Raises:
        AudioError: The audio is non-finite or unreadable; the message names it.
    """
    step_in, step_out, context = resampling_steps(clip.source_rate, clip.sample_rate)
    margin = -(-context // step_in)
    first, last = max(0, start // step_out - margin), -(-stop // step_out) + margin
    begin, end = clip.frames
    until = begin + last * step_in
    raw = clip.raw_blocks(begin + first * step_in, until if end is None else min(until, end))
    blocks = list(resample(checked(raw, clip.name), clip.source_rate, clip.sample_rate))
    part = torch.cat(blocks) if blocks else torch.zeros(0)
    return part[start - first * step_out : stop - first * step_out]


def open_audio(
    audio: Any, sample_rate: int, array_rate: int | None = None, channels: Channels | None = None
) -> list[Clip]:
    """Open audio of any kind.

    Args:
        audio: A path, a file object, a 1-D array, tensor or list of numbers, a 2-D one (a batch of clips);
            one recording with its rate: a pair ``(waveform, rate)``, a mapping with ``array`` and
            ``sampling_rate``, a decoder or samples of torchcodec; or a list, a data frame's column or an
            array of any of these. Integers are scaled to [-1, 1).
        sample_rate: Hz of the result.
        array_rate: Hz of arrays that state no rate; None means ``sample_rate``.
        channels: Meaning of the rows of a 2-D array that states no rate: ``"clips"``; ``"mix"``: the channels
            of one clip, averaged; None: clips, with a warning if they are two. With a rate they are channels.

    Raises:
        AudioError: An input is missing, unreadable or empty, or its shape, type or rate is not supported.
        ConfigError: ``channels`` is not one of its values.
    """
    array_rate = sample_rate if array_rate is None else check_rate(array_rate, "sample_rate")
    return [clip for item in unpack(audio, channels) for clip in _open_one(item, sample_rate, array_rate)]


def _open_one(audio: AudioInput, sample_rate: int, array_rate: int) -> list[Clip]:
    item, name = audio.source, audio.name
    if isinstance(item, (str, os.PathLike)):
        open_file(item, "an audio file", AudioError).close()
        part = item if isinstance(item, AudioPart) else None
        return [_open_file(Path(item), str(item), sample_rate, part)]
    if isinstance(item, StoredFile):
        return [_open_file(item.fetched(), str(item), sample_rate)]
    if hasattr(item, "read"):
        name = str(getattr(item, "name", name))
        return [_open_file(_seekable(item, name), name, sample_rate)]
    if isinstance(item, (bytes, bytearray, memoryview)):
        raise AudioError(
            f"{name} is raw bytes; wrap an encoded file as io.BytesIO(data), or give a path or an array."
        )
    rate = audio.rate or array_rate
    if hasattr(item, "get_all_samples"):
        seconds = getattr(getattr(item, "metadata", None), "duration_seconds", None) or 0.0
        num_samples = resampled_length(round(seconds * rate), rate, sample_rate)
        return [Clip(name, item, rate, sample_rate, num_samples)]
    waveform = to_waveform(item, name, audio.rows)
    if not waveform.numel():
        raise AudioError(f"{name} is empty: it holds no samples.")
    if waveform.ndim == 2 and audio.rows is None and len(waveform) == 2:
        warnings.warn(
            "an array of two rows is treated as two clips. If its rows are the channels of one recording, as "
            "torchaudio.load returns it, pass channels='mix'; if not, channels='clips'.",
            stacklevel=2,
        )
    num_samples = resampled_length(waveform.shape[-1], rate, sample_rate)
    if waveform.ndim == 1:
        return [Clip(name, waveform, rate, sample_rate, num_samples)]
    rows = enumerate(waveform)
    return [Clip(f"row {index} of {name}", row, rate, sample_rate, num_samples) for index, row in rows]


def _open_file(
    source: Path | StoredFile | BinaryIO, name: str, sample_rate: int, part: AudioPart | None = None
) -> Clip:
    rate, samples, is_exact = read_header(source, name)
    if part is None:
        return Clip(name, source, rate, sample_rate, resampled_length(samples, rate, sample_rate))
    first, stop = round(part.start_s * rate), None if part.end_s is None else round(part.end_s * rate)
    if is_exact and first >= samples:
        raise AudioError(f"{name} is empty: the file ends at {samples / rate:g} s.")
    length = max(0, (samples if stop is None else min(stop, samples)) - first)
    return Clip(name, source, rate, sample_rate, resampled_length(length, rate, sample_rate), (first, stop))


def _seekable(file: Any, name: str) -> BinaryIO:
    """Return a binary file object, read into memory if it is not seekable.

    Raises:
        AudioError: It is closed, or a text file.
    """
    if isinstance(file, io.TextIOBase):
        raise AudioError(f"{name} is a text file; open it in binary mode: open(path, 'rb').")
    try:
        with contextlib.suppress(AttributeError):  # of members of streamed tar files, and older mmap
            if file.seekable():
                return file
        return io.BytesIO(file.read())
    except (ValueError, TypeError, OSError) as error:
        if is_machine_fault(error):
            raise
        raise AudioError(f"{name} is not a readable binary file ({error}).") from error
