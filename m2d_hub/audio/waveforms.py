"""Arrays, tensors and lists of numbers to waveforms; and which samples are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError

LOUDEST = 1e12  # of a sample, where full scale is 1: the power of much larger ones is infinite in float32
_INTEGER_SCALE = {torch.uint8: 128.0, torch.int8: 128.0, torch.int16: 32_768.0, torch.int32: 2_147_483_648.0}


def checked(blocks: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    """Passes on blocks (s,) of a waveform.

    Raises:
        AudioError: A sample is no number, infinite, or so large that features would be; the message has
            ``name``.
    """
    for block in blocks:
        if len(block):
            least, most = (float(value) for value in torch.aminmax(block))
            if not (least >= -LOUDEST and most <= LOUDEST):
                raise AudioError(
                    f"{name} holds non-finite samples (NaN or infinity), or some beyond {LOUDEST:g} where "
                    f"full scale is 1 ({least:g} to {most:g}); repair or leave out this audio."
                )
        yield block


def is_number(value: Any) -> bool:
    """Whether it is one number of Python or numpy."""
    return isinstance(value, (int, float, np.number))


def is_numbers(values: Sequence[Any]) -> bool:
    """Whether a list is one waveform, sample by sample."""
    return len(values) > 0 and all(map(is_number, values))


def to_clips(item: Any, name: str) -> Tensor:
    """A waveform (S,), or a batch of them (B, S), float32, from an array, a tensor or numbers.

    Raises:
        AudioError: The shape or the type is none of audio, or it is empty; the message has ``name``.
    """
    waveform = _with_samples(to_waveform(item, name), name)
    if _is_samples_first(waveform):
        raise AudioError(
            f"{name} has shape {tuple(waveform.shape)}, which looks like (samples, channels); a 2-D array is "
            "a batch (clips, samples): say channels='mix' to average the channels."
        )
    return waveform


def to_mono(item: Any, name: str) -> Tensor:
    """A float32 waveform (S,) from one, or from (channels, S) or (S, channels), which are averaged.

    Samples are taken to come first where there are more than 1,000 rows, of at most 8 numbers.

    Raises:
        AudioError: As for :func:`to_clips`.
    """
    waveform = _with_samples(to_waveform(item, name), name)
    return waveform if waveform.ndim == 1 else waveform.mean(dim=1 if _is_samples_first(waveform) else 0)


def scaled(waveform: Tensor, name: str) -> Tensor:
    """Samples of any type as float32, where they are; integers are scaled to [-1, 1).

    Raises:
        AudioError: The type is none of audio; the message has ``name``.
    """
    if waveform.dtype in _INTEGER_SCALE:
        floats = waveform.float() / _INTEGER_SCALE[waveform.dtype]
        return floats - 1 if waveform.dtype is torch.uint8 else floats
    if not waveform.is_floating_point():
        raise AudioError(
            f"{name} has type {waveform.dtype}; give floats in [-1, 1], or int16, int32 or uint8 samples."
        )
    return waveform.float()


def to_waveform(item: Any, name: str) -> Tensor:
    """As :func:`to_clips`, but it may be empty, as a block of a stream may."""
    waveform = _to_tensor(item, name)
    if waveform.ndim not in (1, 2):
        raise AudioError(
            f"{name} has shape {tuple(waveform.shape)}; give a waveform (samples,) or a batch (clips, "
            "samples)."
        )
    return scaled(waveform, name)


def _with_samples(waveform: Tensor, name: str) -> Tensor:
    if not waveform.numel():
        raise AudioError(f"{name} is empty: it holds no samples.")
    return waveform


def _is_samples_first(waveform: Tensor) -> bool:
    return waveform.ndim == 2 and waveform.shape[1] <= 8 and waveform.shape[0] > 1_000


def mix(channels: np.ndarray) -> np.ndarray:
    """Return the mean (s,) of channels (C, s); a sum of rows, since numpy's mean over columns is slow."""
    if len(channels) == 1:
        return channels[0]
    total = channels[0] + channels[1]
    for channel in channels[2:]:
        total += channel
    return total / np.float32(len(channels))


def _to_tensor(item: Any, name: str) -> Tensor:
    try:
        if isinstance(item, Tensor):
            return _plain_tensor(item, name)
        array = np.asarray(item)
        if isinstance(item, (list, tuple)) and array.dtype == np.int64:
            array = _of_16_bits(array, name)
        is_plain = array.dtype.isnative and array.flags.writeable and min(array.strides, default=1) > 0
        if not is_plain:  # a copy that torch can wrap: native byte order, positive strides, writable
            array = np.array(array, dtype=array.dtype.newbyteorder("="))
        return torch.from_numpy(array)
    except (TypeError, ValueError, OverflowError) as error:
        raise AudioError(
            f"{name} is of type {type(item).__name__}, which is no audio: give a path, a file object, a 1-D "
            "or 2-D array or tensor, or a list of these."
        ) from error


def _plain_tensor(tensor: Tensor, name: str) -> Tensor:
    is_plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    if tensor.is_meta or not is_plain:
        raise AudioError(
            f"{name} is a sparse, nested, quantised or meta tensor; give a dense one, with its samples in "
            "memory."
        )
    return tensor.detach().cpu()


def _of_16_bits(array: np.ndarray, name: str) -> np.ndarray:
    """Whole numbers of Python, which have no width, as what 16-bit audio is in a list."""
    bounds = np.iinfo(np.int16)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise AudioError(
            f"{name} holds whole numbers beyond 16 bits, which do not say their scale: give an array of "
            "int32, or floats in [-1, 1]."
        )
    return array.astype(np.int16)
