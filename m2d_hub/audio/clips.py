"""Anything that holds audio to blocks of mono waveform at the model's rate.

A file is opened once to look at its header, so that a bad one is found before work starts, and read in blocks
when its turn comes; nothing is ever held whole but the arrays that a caller hands over.
"""

from __future__ import annotations

import io
import mmap
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from m2d_hub.audio.decode import BLOCK_VALUES, decode, read_header
from m2d_hub.audio.given import Channels, Given, unpack
from m2d_hub.audio.resample import check_rate, resample, resampled_length, resampling_steps
from m2d_hub.audio.stored import StoredFile
from m2d_hub.audio.waveforms import checked, to_clips, to_mono
from m2d_hub.errors import AudioError
from m2d_hub.io import open_file

# What cannot be read, or only with PyAV, is looked for as well, so that it is reported, not passed over.
_READABLE_SUFFIXES = "wav wave flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf w64 rf64 sph voc gsm"
_OTHER_SUFFIXES = "m4a m4b mp4 aac 3gp wma amr webm mka wv ape spx"
AUDIO_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_READABLE_SUFFIXES} {_OTHER_SUFFIXES}".split())


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
    """One piece of audio that can be read once more or, where it is read ahead, once."""

    expected_samples: int  # as announced by the source

    @abstractmethod
    def blocks(self) -> Iterator[Tensor]:
        """Consecutive parts (s,) of the mono waveform at the rate wanted, float32.

        Raises:
            AudioError: The audio is empty, non-finite or unreadable; the message names it.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Lets it go, read or not."""


@dataclass(frozen=True)
class Clip(AudioClip):
    """One piece of audio, not yet read: a file, or a waveform in memory."""

    name: str  # for messages: the path, or the place in the caller's list
    source: Any  # path, stored file, file object, decoder of torchcodec, or mono float32 waveform (S,)
    source_rate: int  # Hz
    sample_rate: int  # Hz wanted
    expected_samples: int  # at sample_rate, as announced by the source
    frames: tuple[int, int | None] = (0, None)  # of the file: the first, and the one after the last

    def blocks(self) -> Iterator[Tensor]:
        empty = True
        raw = checked(self._raw(*self.frames), self.name)
        for block in resample(raw, self.source_rate, self.sample_rate):
            empty = empty and not len(block)
            yield block
        if empty:
            raise AudioError(f"{self.name} is empty: it holds no samples.")

    def _raw(self, first: int, stop: int | None) -> Iterator[Tensor]:
        """Blocks (s,) of the source's samples ``first`` to ``stop``, at its rate."""
        if isinstance(self.source, Tensor):
            return _split(self.source[first:stop])
        if isinstance(self.source, (Path, StoredFile)) or hasattr(self.source, "read"):
            return decode(self.source, self.name, first, stop)
        return _split(_decoded(self.source, self.name)[first:stop])


def read_part(clip: Clip, start: int, stop: int) -> Tensor:
    """Reads some samples of a clip without those before them, as :meth:`Clip.blocks` gives them.

    Where the rates differ, resampled samples agree within 1e-5 (full scale is 1).

    Args:
        clip: What :func:`open_audio` gave.
        start: The first sample wanted, at the clip's ``sample_rate``.
        stop: The one after the last.

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
    raw = clip._raw(begin + first * step_in, until if end is None else min(until, end))
    blocks = list(resample(checked(raw, clip.name), clip.source_rate, clip.sample_rate))
    part = torch.cat(blocks) if blocks else torch.zeros(0)
    return part[start - first * step_out : stop - first * step_out]


def open_audio(
    audio: Any, sample_rate: int, array_rate: int | None = None, channels: Channels | None = None
) -> list[Clip]:
    """Sorts out what a caller handed over.

    Args:
        audio: A path, a file object, a 1-D array, tensor or list of numbers, a 2-D one (a batch of clips);
            one recording with its rate: a pair ``(waveform, rate)``, a mapping with ``array`` and
            ``sampling_rate``, a decoder or samples of torchcodec; or a list, a data frame's column or an
            array of any of these. Integers are scaled to [-1, 1).
        sample_rate: Hz wanted.
        array_rate: Hz of arrays that come without; None means ``sample_rate``. Files carry theirs.
        channels: What the rows of a 2-D array that comes without a rate are: ``"clips"``; ``"mix"``: the
            channels of one clip, averaged; None: clips, with a warning where they are two. Of what carries
            its rate they are channels.

    Raises:
        AudioError: Something is missing, unreadable, empty, or of a shape, type or rate that cannot be used.
        ConfigError: ``channels`` is none of these.
    """
    array_rate = sample_rate if array_rate is None else check_rate(array_rate, "sample_rate")
    return [clip for given in unpack(audio, channels) for clip in _open_one(given, sample_rate, array_rate)]


def _open_one(given: Given, sample_rate: int, array_rate: int) -> list[Clip]:
    item, name = given.source, given.name
    if isinstance(item, (str, os.PathLike)):
        part = item if isinstance(item, AudioPart) else None
        return [_open_file(_check_path(Path(item)), str(item), sample_rate, part)]
    if isinstance(item, StoredFile):
        fetched = item.fetched()  # or why it cannot be
        if not item.size:
            raise AudioError(f"{item} is empty: it holds no samples.")
        return [_open_file(fetched, str(item), sample_rate)]
    if hasattr(item, "read"):
        name = str(getattr(item, "name", name))
        return [_open_file(_seekable(item, name), name, sample_rate)]
    if isinstance(item, (bytes, bytearray, memoryview)):
        raise AudioError(
            f"{name} is raw bytes; wrap an encoded file as io.BytesIO(data), or give a path or an array."
        )
    rate = given.rate or array_rate
    if hasattr(item, "get_all_samples"):
        seconds = getattr(getattr(item, "metadata", None), "duration_seconds", None) or 0.0
        return [
            Clip(name, item, rate, sample_rate, resampled_length(round(seconds * rate), rate, sample_rate))
        ]
    return [
        Clip(row_name, row, rate, sample_rate, resampled_length(len(row), rate, sample_rate))
        for row_name, row in _rows(given)
    ]


def _rows(given: Given) -> list[tuple[str, Tensor]]:
    """The clips of an array, with their names."""
    if given.rows == "mix":
        return [(given.name, to_mono(given.source, given.name))]
    waveform = to_clips(given.source, given.name)
    if waveform.ndim == 1:
        return [(given.name, waveform)]
    if given.rows is None and len(waveform) == 2:
        warnings.warn(
            "an array of two rows is taken for two clips. Where its rows are the two channels of one "
            "recording, as torchaudio.load gives it, say channels='mix'; where not, channels='clips'.",
            stacklevel=2,
        )
    return [(f"row {index} of {given.name}", row) for index, row in enumerate(waveform)]


def _open_file(
    source: Path | StoredFile | BinaryIO, name: str, sample_rate: int, part: AudioPart | None = None
) -> Clip:
    header = read_header(source, name)
    rate, samples = header.sample_rate, header.num_samples
    if part is None:
        return Clip(name, source, rate, sample_rate, resampled_length(samples, rate, sample_rate))
    first, stop = round(part.start_s * rate), None if part.end_s is None else round(part.end_s * rate)
    if header.is_exact and first >= samples:
        raise AudioError(f"{name} is empty: the file ends at {samples / rate:g} s.")
    length = max(0, (samples if stop is None else min(stop, samples)) - first)
    return Clip(name, source, rate, sample_rate, resampled_length(length, rate, sample_rate), (first, stop))


def _check_path(path: Path) -> Path:
    """A path of a regular file that is not empty.

    Raises:
        AudioError: It is none; the message says what it is.
    """
    with open_file(path, "an audio file", AudioError) as file:
        if not os.fstat(file.fileno()).st_size:
            raise AudioError(f"{path} is empty: it holds no samples.")
    return path


def _seekable(file: Any, name: str) -> BinaryIO:
    """A file object that can be sought, of bytes; what cannot is read into memory.

    Raises:
        AudioError: It is closed, or of text.
    """
    if isinstance(file, io.TextIOBase):
        raise AudioError(f"{name} is a file of text; open it for bytes: open(path, 'rb').")
    try:
        try:
            if file.seekable():
                return file
        except AttributeError:  # older mmap and SpooledTemporaryFile; members of tars that are streamed
            if isinstance(file, (mmap.mmap, tempfile.SpooledTemporaryFile)):
                file.seek(0)
        return io.BytesIO(file.read())
    except (ValueError, TypeError, OSError) as error:
        raise AudioError(f"{name} is no file of bytes that can be read ({error}).") from error


def _split(waveform: Tensor) -> Iterator[Tensor]:
    yield from waveform.split(BLOCK_VALUES)


def _decoded(decoder: Any, name: str) -> Tensor:
    """All samples of a decoder of torchcodec, mono.

    Raises:
        AudioError: It cannot decode them, or there are none.
    """
    try:
        samples = decoder.get_all_samples().data
    except (RuntimeError, ValueError) as error:
        raise AudioError(f"{name} cannot be decoded by its decoder ({error}).") from error
    return to_mono(samples, name)
