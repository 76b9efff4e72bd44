"""What a caller hands over as audio, in the shapes of other libraries too, to single recordings."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from m2d_hub.audio.resample import check_rate
from m2d_hub.audio.waveforms import is_number, is_numbers
from m2d_hub.errors import AudioError, ConfigError

Channels = Literal["clips", "mix"]


@dataclass(frozen=True)
class Given:
    """One thing that holds audio, not yet looked at."""

    source: Any  # path, file object, decoder, array, tensor or list of numbers
    name: str  # for messages
    rate: int | None = None  # Hz that came with an array or a decoder
    rows: Channels | None = None  # what the rows of a 2-D array are; None: clips, but two are doubtful


def unpack(audio: Any, channels: Channels | None) -> list[Given]:
    """Takes lists, columns and arrays of objects apart, and audio out of what carries its rate.

    Args:
        audio: As for :func:`m2d_hub.audio.open_audio`.
        channels: What the rows of 2-D arrays are that come alone.

    Raises:
        AudioError: There is nothing, or a pair or a mapping without a waveform and its rate.
        ConfigError: ``channels`` is none of the words it may be.
    """
    if channels not in (None, "clips", "mix"):
        raise ConfigError(
            f"channels must be 'mix' (rows of an array are channels, averaged), 'clips' or None, got "
            f"{channels!r}."
        )
    audio = _listed(audio)
    if not isinstance(audio, list) or is_numbers(audio):
        return [_unpack_one(audio, "the audio", channels)]
    if not audio:
        raise AudioError("an empty list was given; give at least one path or waveform.")
    return [_unpack_one(item, f"input {index}", channels) for index, item in enumerate(audio)]


def _listed(audio: Any) -> Any:
    """A sequence, a data frame's column or an array of objects as a list; what else there is as it is."""
    if isinstance(audio, (str, bytes, bytearray, memoryview, Tensor)) or _is_pair(audio):
        return audio
    if isinstance(audio, Sequence):
        return audio if is_numbers(audio) else list(audio)
    if not hasattr(audio, "__array__"):
        return audio
    objects = np.asarray(audio)
    if objects.dtype.kind not in "OUT":  # of objects or strings
        return audio
    if objects.ndim != 1:
        raise AudioError(f"an array or table of shape {objects.shape} was given; give one column of it.")
    return list(objects)


def _unpack_one(item: Any, name: str, channels: Channels | None) -> Given:
    if isinstance(item, Mapping):
        return _unpack_mapping(item, name)
    if _is_pair(item):
        return _unpack_pair(item, name)
    if hasattr(
        item, "get_all_samples"
    ):  # a decoder of torchcodec: its samples need not be at its file's rate
        rate = item.get_samples_played_in_range(0, 0).sample_rate
        return Given(item, name, check_rate(rate, f"the sample rate of {name}"))
    if hasattr(item, "sample_rate") and isinstance(getattr(item, "data", None), Tensor):  # its samples
        return Given(item.data, name, check_rate(item.sample_rate, f"the sample rate of {name}"), "mix")
    return Given(item, name, rows=channels)


def _unpack_mapping(row: Mapping[str, Any], name: str) -> Given:
    """A row of Hugging Face datasets, decoded or not."""
    path, data = row.get("path"), row.get("bytes")
    if row.get("array") is not None and row.get("sampling_rate") is not None:
        rate = check_rate(row["sampling_rate"], f"sampling_rate of {name}")
        return Given(row["array"], name, rate, "mix")
    if isinstance(data, bytes):
        return Given(io.BytesIO(data), name if path is None else str(path))
    if "array" not in row and isinstance(path, (str, os.PathLike)):
        return Given(path, name)
    raise AudioError(
        f"{name} is a mapping of {', '.join(map(repr, row)) or 'nothing'}; give {{'array': waveform, "
        "'sampling_rate': Hz}, or one of a file's 'bytes' or 'path'."
    )


def _is_pair(audio: Any) -> bool:
    return isinstance(audio, tuple) and len(audio) == 2 and is_number(audio[0]) != is_number(audio[1])


def _unpack_pair(pair: tuple[Any, Any], name: str) -> Given:
    waveform, rate = pair
    if is_number(waveform) or isinstance(waveform, (str, os.PathLike)) or hasattr(waveform, "read"):
        kinds = f"({type(waveform).__name__}, {type(rate).__name__})"
        raise AudioError(
            f"{name} is a pair {kinds}; a pair is (waveform, rate): swap (rate, waveform), and give a file, "
            "which carries its rate, alone."
        )
    return Given(waveform, name, check_rate(rate, f"the rate of {name}"), "mix")
