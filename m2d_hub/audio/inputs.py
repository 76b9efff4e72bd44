"""Normalisation of audio inputs: paths, arrays, columns and other libraries' objects to single waveforms."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError, ConfigError

Channels = Literal["clips", "mix"]
MIN_RATE_HZ, MAX_RATE_HZ = 100, 10_000_000
MAX_SAMPLE = 1e12  # where full scale is 1: the power of much larger samples is infinite in float32
_INTEGER_SCALE = {torch.uint8: 128.0, torch.int8: 128.0, torch.int16: 32_768.0, torch.int32: 2_147_483_648.0}


@dataclass(frozen=True)
class AudioInput:
    """One object that holds audio, not yet opened."""

    source: Any  # path, file object, decoder, array, tensor or list of numbers
    name: str  # for messages
    rate: int | None = None  # Hz that came with an array or a decoder
    rows: Channels | None = None  # meaning of the rows of a 2-D array; None: clips, with a warning if two


def unpack(audio: Any, channels: Channels | None) -> list[AudioInput]:
    """Split lists, columns and arrays of objects, and take waveforms from objects that state a sample rate.

    Args:
        audio: As for :func:`m2d_hub.audio.open_audio`.
        channels: Meaning of the rows of 2-D arrays without a sample rate.

    Raises:
        AudioError: It is empty, or a pair or a mapping lacks a waveform or a sample rate.
        ConfigError: ``channels`` is not one of its values.
    """
    if channels not in (None, "clips", "mix"):
        raise ConfigError(
            f"channels must be 'mix' (rows of an array are channels, averaged), 'clips' or None, got "
            f"{channels!r}."
        )
    audio = _as_list(audio)
    if not isinstance(audio, list) or is_numbers(audio):
        return [_unpack_one(audio, "the audio", channels)]
    if not audio:
        raise AudioError("an empty list was given; give at least one path or waveform.")
    return [_unpack_one(item, f"input {index}", channels) for index, item in enumerate(audio)]


def _as_list(audio: Any) -> Any:
    """Return a sequence, a data frame's column or an array of objects as a list, and others unchanged."""
    if isinstance(audio, (str, bytes, bytearray, memoryview, Tensor)) or _is_pair(audio):
        return audio
    if isinstance(audio, Sequence):
        return audio if is_numbers(audio) else list(audio)
    if not hasattr(audio, "__array__"):
        return audio
    objects = np.asarray(audio)
    return list(objects) if objects.dtype.kind in "OUT" else audio  # objects or strings


def _unpack_one(item: Any, name: str, channels: Channels | None) -> AudioInput:
    if isinstance(item, Mapping):
        return _unpack_mapping(item, name)
    if _is_pair(item):
        waveform, rate = item
        if is_number(waveform) or isinstance(waveform, (str, os.PathLike)) or hasattr(waveform, "read"):
            kinds = f"({type(waveform).__name__}, {type(rate).__name__})"
            raise AudioError(f"{name} is a pair {kinds}; give (waveform, rate), or a file alone.")
        return AudioInput(waveform, name, check_rate(rate, f"the rate of {name}"), "mix")
    if hasattr(item, "get_all_samples"):  # torchcodec's decoder, which may resample
        rate = item.get_samples_played_in_range(0, 0).sample_rate
        return AudioInput(item, name, check_rate(rate, f"the sample rate of {name}"))
    if hasattr(item, "sample_rate") and isinstance(getattr(item, "data", None), Tensor):  # its samples
        return AudioInput(item.data, name, check_rate(item.sample_rate, f"the sample rate of {name}"), "mix")
    return AudioInput(item, name, rows=channels)


def _unpack_mapping(row: Mapping[str, Any], name: str) -> AudioInput:
    """Unpack a row of Hugging Face datasets, decoded or not."""
    path, data = row.get("path"), row.get("bytes")
    if row.get("array") is not None and row.get("sampling_rate") is not None:
        rate = check_rate(row["sampling_rate"], f"sampling_rate of {name}")
        return AudioInput(row["array"], name, rate, "mix")
    if isinstance(data, bytes):
        return AudioInput(io.BytesIO(data), name if path is None else str(path))
    if "array" not in row and isinstance(path, (str, os.PathLike)):
        return AudioInput(path, name)
    raise AudioError(
        f"{name} is a mapping of {', '.join(map(repr, row)) or 'nothing'}; give {{'array': waveform, "
        "'sampling_rate': Hz}, or one of a file's 'bytes' or 'path'."
    )


def _is_pair(audio: Any) -> bool:
    return isinstance(audio, tuple) and len(audio) == 2 and is_number(audio[0]) != is_number(audio[1])


def check_rate(rate: Any, what: str) -> int:
    """Return a sample rate as an int.

    Args:
        rate: A whole number of Hz, of any numeric type.
        what: The start of the message.

    Raises:
        AudioError: It is not a whole number, or out of bounds.
    """
    if is_number(rate) and MIN_RATE_HZ <= rate <= MAX_RATE_HZ and rate == int(rate):
        return int(rate)
    raise AudioError(
        f"{what} must be a positive number of Hz, got {rate!r}; give a whole number from {MIN_RATE_HZ:,} to "
        f"{MAX_RATE_HZ:,}."
    )


def is_number(value: Any) -> bool:
    """Return whether a value is one number of Python or numpy."""
    return isinstance(value, (int, float, np.number))


def is_numbers(values: Sequence[Any]) -> bool:
    """Return whether a list is one waveform, sample by sample."""
    return len(values) > 0 and all(map(is_number, values))


def checked(blocks: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    """Yield blocks (s,) of a waveform after checking their samples.

    Raises:
        AudioError: A sample is NaN, infinite, or so large that features would be; the message has ``name``.
    """
    for block in blocks:
        if len(block):
            smallest, largest = (float(value) for value in torch.aminmax(block))
            if not (smallest >= -MAX_SAMPLE and largest <= MAX_SAMPLE):
                raise AudioError(
                    f"{name} holds non-finite samples (NaN or infinity), or some beyond {MAX_SAMPLE:g} where "
                    f"full scale is 1 ({smallest:g} to {largest:g}); repair or leave out this audio."
                )
        yield block


def to_waveform(item: Any, name: str, channels: Channels | None = None) -> Tensor:
    """Return an array, a tensor or numbers as a float32 waveform (S,), or as a batch (B, S).

    With ``channels="mix"``, the rows are averaged to one waveform; more than 1,000 rows of at most 8 numbers
    are taken for (S, channels).

    Raises:
        AudioError: It is not of a shape or type of audio; the message has ``name``.
    """
    waveform = scaled(_to_tensor(item, name), name)
    shape = tuple(waveform.shape)
    if waveform.ndim not in (1, 2):
        raise AudioError(f"{name} has shape {shape}; give a waveform (samples,) or a batch (clips, samples).")
    is_samples_first = waveform.ndim == 2 and shape[1] <= 8 and shape[0] > 1_000
    if channels == "mix":
        return waveform if waveform.ndim == 1 else waveform.mean(dim=1 if is_samples_first else 0)
    if is_samples_first:
        raise AudioError(
            f"{name} has shape {shape}, which looks like (samples, channels); a 2-D array is a batch (clips, "
            "samples): say channels='mix' to average the channels."
        )
    return waveform


def scaled(waveform: Tensor, name: str) -> Tensor:
    """Return samples of any type as float32 on the same device, with integers scaled to [-1, 1).

    Raises:
        AudioError: The type is not one of audio; the message has ``name``.
    """
    if waveform.dtype in _INTEGER_SCALE:
        floats = waveform.float() / _INTEGER_SCALE[waveform.dtype]
        return floats - 1 if waveform.dtype is torch.uint8 else floats
    if not waveform.is_floating_point():
        raise AudioError(
            f"{name} has type {waveform.dtype}; give floats in [-1, 1], or int16, int32 or uint8 samples."
        )
    return waveform.float()


def mix(channels: np.ndarray) -> np.ndarray:
    """Return the mean (s,) of channels (C, s); a sum of rows, since numpy's mean over columns is slow."""
    if len(channels) == 1:
        return channels[0]
    total = channels[0] + channels[1]
    for channel in channels[2:]:
        total += channel
    return total / np.float32(len(channels))


def _to_tensor(item: Any, name: str) -> Tensor:
    if isinstance(item, Tensor) and item.layout is torch.strided and not item.is_meta:
        return item.detach().cpu()
    try:
        array = np.asarray(item)
        # torch wraps native byte order, positive strides and writable memory without a copy.
        plain = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        if isinstance(item, (list, tuple)) and array.dtype == np.int64:  # Python's, which state no width
            plain = array.astype(np.int16)
            if not np.array_equal(plain, array):
                raise AudioError(
                    f"{name} holds whole numbers beyond 16 bits, which do not state their scale; give an "
                    "array of int32, or floats in [-1, 1]."
                )
        return torch.from_numpy(plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise AudioError(
            f"{name} is of type {type(item).__name__}, which is not supported as audio; give a path, a file "
            "object, a 1-D or 2-D array or dense tensor, or a list of these."
        ) from error
