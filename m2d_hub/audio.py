"""Anything that holds audio to blocks of mono waveform at the model's rate.

A file is opened once to look at its header, so that a bad one is found before work starts, and read in blocks
when its turn comes; only arrays that a caller hands over, and file objects that cannot seek, are held whole.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError, M2DError

BLOCK_S = 20.0  # seconds read at a time
MAX_FILTER_TAPS = 16_000_000  # numbers in a resampling kernel, 64 MB
# Kinds that libsndfile cannot read are looked for as well, so that they are reported, not passed over.
_READABLE_SUFFIXES = "wav wave flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf w64 rf64"
_OTHER_SUFFIXES = "m4a aac wma amr webm"
AUDIO_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_READABLE_SUFFIXES} {_OTHER_SUFFIXES}".split())
_UNKNOWN_FRAMES = 1 << 40  # libsndfile's answer where a header does not say
_MP3_LEAD_FRAMES = 10 * 1_152  # decoded before a place that was sought, as MP3 frames refer to earlier ones
_INTEGER_SCALE = {torch.uint8: 128.0, torch.int8: 128.0, torch.int16: 32_768.0, torch.int32: 2_147_483_648.0}


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


@dataclass(frozen=True)
class Clip:
    """One piece of audio, not yet read: a file, or a waveform in memory."""

    name: str  # for messages: the path, or the place in the caller's list
    source: Any  # path, file object, or mono float32 waveform (S,)
    source_rate: int  # Hz
    sample_rate: int  # Hz wanted
    expected_samples: int  # at sample_rate, as announced by the source
    frames: tuple[int, int | None] = (0, None)  # of the file: the first, and the one after the last

    def blocks(self) -> Iterator[Tensor]:
        """Consecutive parts (s,) of the mono waveform at ``sample_rate``, float32.

        Raises:
            AudioError: The audio is empty, non-finite or unreadable; the message names it.
        """
        raw = (
            _split(self.source)
            if isinstance(self.source, Tensor)
            else _read(self.source, self.name, *self.frames)
        )
        empty = True
        for block in _resample(_checked(raw, self.name), self.source_rate, self.sample_rate):
            empty = empty and not len(block)
            yield block
        if empty:
            raise AudioError(f"{self.name} is empty: it holds no samples.")


def read_part(clip: Clip, start: int, stop: int) -> Tensor:
    """Reads some samples of a clip without those before them, as :meth:`Clip.blocks` gives them.

    Where a file is entered is as exact as its format: to the sample, but to some milliseconds in Ogg Vorbis.

    Args:
        clip: What :func:`open_audio` gave.
        start: The first sample wanted, at the clip's ``sample_rate``.
        stop: The one after the last.

    Returns:
        (stop − start,) float32, or fewer samples where the audio ends before.

    Raises:
        AudioError: The audio is non-finite or unreadable; the message names it.
    """
    ratio = _ratio(clip.source_rate, clip.sample_rate)
    step_in, step_out = ratio.denominator, ratio.numerator  # whole samples at both rates
    margin = 0 if ratio == 1 else 1 + _resampler(step_out, step_in).width // step_in  # the filter's context
    first, last = max(0, start // step_out - margin), -(-stop // step_out) + margin
    if isinstance(clip.source, Tensor):
        raw = _split(clip.source[first * step_in : last * step_in])
    else:
        begin, end = clip.frames
        until = begin + last * step_in
        raw = _read(
            clip.source, clip.name, begin + first * step_in, until if end is None else min(until, end)
        )
    blocks = list(_resample(_checked(raw, clip.name), clip.source_rate, clip.sample_rate))
    part = torch.cat(blocks) if blocks else torch.zeros(0)
    return part[start - first * step_out : stop - first * step_out]


def open_audio(audio: Any, sample_rate: int, array_rate: int | None = None) -> list[Clip]:
    """Sorts out what a caller handed over.

    Args:
        audio: A path, a file object, a 1-D array, tensor or list of numbers, a 2-D one (a batch of clips), or
            a list of any of these. Integer arrays are scaled to [-1, 1).
        sample_rate: Hz wanted.
        array_rate: Hz of arrays; None means ``sample_rate``. Files carry theirs.

    Raises:
        AudioError: Something is missing, unreadable, empty, or of a shape, type or rate that cannot be used.
    """
    if array_rate is not None and not (isinstance(array_rate, (int, np.integer)) and array_rate > 0):
        raise AudioError(f"sample_rate must be a positive number of Hz, got {array_rate!r}.")
    array_rate = int(array_rate or sample_rate)
    if isinstance(audio, (list, tuple)) and not _is_numbers(audio):
        if not audio:
            raise AudioError("an empty list was given; give at least one path or waveform.")
        parts = [(item, f"input {index}") for index, item in enumerate(audio)]
    else:
        parts = [(audio, "the audio")]
    return [clip for item, name in parts for clip in _open_one(item, name, sample_rate, array_rate)]


def _open_one(item: Any, name: str, sample_rate: int, array_rate: int) -> list[Clip]:
    if isinstance(item, (str, os.PathLike)):
        part = item if isinstance(item, AudioPart) else None
        return [_open_file(Path(item), str(item), sample_rate, part)]
    if hasattr(item, "read"):
        return [_open_file(item, str(getattr(item, "name", name)), sample_rate)]
    if isinstance(item, (bytes, bytearray, memoryview)):
        raise AudioError(
            f"{name} is raw bytes; wrap an encoded file as io.BytesIO(data), or give a path or an array."
        )
    waveform = _to_waveform(item, name)
    rows = [waveform] if waveform.ndim == 1 else list(waveform)
    clips = []
    for index, row in enumerate(rows):
        row_name = name if waveform.ndim == 1 else f"row {index} of {name}"
        if not len(row):
            raise AudioError(f"{row_name} is empty: it holds no samples.")
        expected = _resampled_length(len(row), array_rate, sample_rate)
        clips.append(Clip(row_name, row, array_rate, sample_rate, expected))
    return clips


def _open_file(source: Any, name: str, sample_rate: int, part: AudioPart | None = None) -> Clip:
    if isinstance(source, Path) and not source.is_file():
        problem = "is a folder, not an audio file" if source.is_dir() else "does not exist"
        raise AudioError(f"{name} {problem}.")
    if isinstance(source, Path) and not source.stat().st_size:
        raise AudioError(f"{name} is empty: it holds no samples.")
    if not isinstance(source, Path) and not source.seekable():
        source = io.BytesIO(source.read())
    with _sound_file(source, name) as file:
        frames = file.frames if 0 <= file.frames < _UNKNOWN_FRAMES else 0
        rate = file.samplerate
    if part is None:
        return Clip(name, source, rate, sample_rate, _resampled_length(frames, rate, sample_rate))
    first, stop = round(part.start_s * rate), None if part.end_s is None else round(part.end_s * rate)
    if frames and first >= frames:
        raise AudioError(f"{name} is empty: the file ends at {frames / rate:g} s.")
    length = max(0, (frames if stop is None else min(stop, frames)) - first)
    return Clip(name, source, rate, sample_rate, _resampled_length(length, rate, sample_rate), (first, stop))


def _sound_file(source: Any, name: str) -> Any:
    import soundfile

    if not isinstance(source, Path):
        source.seek(0)
    elif os.name == "posix":
        source = os.fsencode(source)  # names that are no UTF-8
    try:
        file = soundfile.SoundFile(source)
        # A seekable file is sought before and after each read, from where MP3 goes on with wrong samples.
        file.seekable = lambda: False
        return file
    except (soundfile.LibsndfileError, TypeError, OSError, EOFError) as error:
        raise AudioError(_unreadable(name, error)) from error


def _unreadable(name: str, error: Exception) -> str:
    reason = str(getattr(error, "error_string", error)).rstrip(".")
    return (
        f"{name} cannot be read as audio ({reason}). WAV, FLAC, Ogg, MP3 and what else libsndfile knows are "
        "read; convert others first, for instance: ffmpeg -i INPUT OUTPUT.flac"
    )


def _read(source: Any, name: str, first: int, stop: int | None) -> Iterator[Tensor]:
    import soundfile

    with _sound_file(source, name) as file:
        size = int(BLOCK_S * file.samplerate)
        left = math.inf if stop is None else max(0, stop - first)
        first = min(first, file.frames)
        lead = min(first, _MP3_LEAD_FRAMES) if file.format == "MP3" else 0
        try:
            if first:
                file.seek(first - lead)
                file.read(lead, dtype="float32")
            while len(block := file.read(int(min(size, left)), dtype="float32", always_2d=True)):
                left -= len(block)
                mono = block if block.shape[1] == 1 else block.mean(axis=1, keepdims=True)
                yield torch.from_numpy(mono)[:, 0]
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(_unreadable(name, error)) from error


def _split(waveform: Tensor) -> Iterator[Tensor]:
    yield from waveform.split(int(BLOCK_S * 48_000))


def _checked(blocks: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    for block in blocks:
        if not torch.isfinite(block.sum()) and not torch.isfinite(block).all():
            raise AudioError(
                f"{name} holds non-finite samples (NaN or infinity); repair or leave out this audio."
            )
        yield block


def _is_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, (int, float, np.number)) for value in values)


def _to_waveform(item: Any, name: str) -> Tensor:
    """A float32 tensor (S,) or (B, S) from an array, a tensor or numbers."""
    try:
        if isinstance(item, Tensor):
            waveform = item.detach()
        elif isinstance(item, (list, tuple)):
            waveform = torch.from_numpy(np.asarray(item, dtype=np.float32))
        else:
            array = np.asarray(item)
            waveform = torch.from_numpy(array if array.dtype.isnative and _is_plain(array) else _plain(array))
    except (TypeError, ValueError) as error:
        raise AudioError(
            f"{name} is of type {type(item).__name__}, which is no audio: give a path, a file object, a 1-D "
            "or 2-D array or tensor, or a list of these."
        ) from error
    if waveform.ndim not in (1, 2):
        raise AudioError(
            f"{name} has shape {tuple(waveform.shape)}; give a waveform (samples,) or a batch (clips, "
            "samples)."
        )
    if waveform.ndim == 2 and waveform.shape[1] <= 8 and waveform.shape[0] > 1_000:
        raise AudioError(
            f"{name} has shape {tuple(waveform.shape)}, which looks like (samples, channels); a 2-D array is "
            "a batch (clips, samples): average the channels first, x.mean(axis=1)."
        )
    if waveform.dtype in _INTEGER_SCALE:
        scaled = waveform.float() / _INTEGER_SCALE[waveform.dtype]
        return scaled - 1 if waveform.dtype is torch.uint8 else scaled
    if not waveform.is_floating_point():
        raise AudioError(
            f"{name} has type {waveform.dtype}; give floats in [-1, 1], or int16, int32 or uint8 samples."
        )
    return waveform.float()


def _is_plain(array: np.ndarray) -> bool:
    return all(stride > 0 for stride in array.strides) and array.flags.writeable


def _plain(array: np.ndarray) -> np.ndarray:
    """A copy that torch can wrap: native byte order, positive strides, writable."""
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def _ratio(source_rate: int, sample_rate: int) -> Fraction:
    """Output samples per input sample, as a fraction whose filter bank stays small.

    Rates without a common divisor (44,101 Hz, say) would need a filter for each of thousands of phases; their
    ratio is rounded, by less than 0.01 %.
    """
    ratio = Fraction(sample_rate, source_rate)
    filter_samples = ratio.denominator + 15 / min(Fraction(1), ratio)  # of one phase
    if ratio.numerator * filter_samples <= MAX_FILTER_TAPS:
        return ratio
    return ratio.limit_denominator(4_000) if ratio <= 1 else 1 / (1 / ratio).limit_denominator(4_000)


def _resampled_length(num_samples: int, source_rate: int, sample_rate: int) -> int:
    return int(-(-num_samples * _ratio(source_rate, sample_rate) // 1))


@lru_cache(maxsize=8)
def _resampler(numerator: int, denominator: int) -> Any:
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        raise M2DError(
            f"torchaudio, which resamples audio, does not load with torch {torch.__version__} ({error}). "
            "Install a pair that belongs together, for instance: pip install 'torch>=2.11,<2.15' "
            "'torchaudio>=2.11,<2.12'"
        ) from error
    return torchaudio.transforms.Resample(orig_freq=denominator, new_freq=numerator)


def _resample(blocks: Iterator[Tensor], source_rate: int, sample_rate: int) -> Iterator[Tensor]:
    """Resamples a stream as if it were whole: each block carries its filter's context."""
    ratio = _ratio(source_rate, sample_rate)
    if ratio == 1:
        yield from blocks
        return
    resampler = _resampler(ratio.numerator, ratio.denominator)
    step = ratio.denominator  # input samples that give a whole number of output samples
    context = step * (1 + resampler.width // step)
    pending, lead = torch.zeros(0), 0  # lead: samples of left context that pending begins with
    for block in blocks:
        pending = torch.cat([pending, block])
        ready = (len(pending) - lead - context) // step * step
        if ready <= 0:
            continue
        resampled = resampler(pending[: lead + ready + context])
        first = lead // step * ratio.numerator
        yield resampled[first : first + ready // step * ratio.numerator]
        keep = max(0, lead + ready - context)
        pending, lead = pending[keep:], lead + ready - keep
    if len(pending) > lead:
        yield resampler(pending)[lead // step * ratio.numerator :]
