"""Resampling with soxr, block by block: the same samples as for the whole waveform."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_FILTER_REACH = 128  # samples at the lower rate: those further away change an output sample by less than 1e-5


def resampled_length(num_samples: int, source_rate: int, sample_rate: int) -> int:
    """Return the length after resampling: the exact length rounded up, as ``librosa.resample`` gives it."""
    return -(-num_samples * sample_rate // source_rate)


def resampling_steps(source_rate: int, sample_rate: int) -> tuple[int, int, int]:
    """Return how to resample from the middle of a stream.

    Returns:
        The smallest number of source samples that gives a whole number of output samples, that number, and
        the source samples of context that either side needs for a difference below 1e-5 (full scale is 1).
    """
    if source_rate == sample_rate:
        return 1, 1, 0
    divisor = math.gcd(source_rate, sample_rate)
    context = math.ceil(_FILTER_REACH * max(1.0, source_rate / sample_rate))
    return source_rate // divisor, sample_rate // divisor, context


class Resampler:
    """Resample one stream of float32 blocks with soxr's quality HQ.

    The output does not depend on how the stream is divided into blocks. It is that of
    ``librosa.resample(res_type="soxr_hq")``: where soxr rounds the length down, a zero is appended.
    """

    def __init__(self, source_rate: int, sample_rate: int):
        import soxr

        self._rates = source_rate, sample_rate
        is_same = source_rate == sample_rate
        self._soxr = None if is_same else soxr.ResampleStream(source_rate, sample_rate, 1, quality="HQ")
        self._num_in = self._num_out = 0

    def push(self, block: Tensor) -> Tensor:
        """Return the samples that are complete after ``block`` (s,), perhaps none."""
        if self._soxr is None:
            return block
        samples = self._soxr.resample_chunk(np.ascontiguousarray(block.numpy()))
        self._num_in += len(block)
        self._num_out += len(samples)
        return torch.from_numpy(samples)

    def finish(self) -> Tensor:
        """Return the remaining samples at the end of the stream."""
        rest = np.zeros(0, np.float32)
        if self._soxr is not None and self._num_in:
            rest = self._soxr.resample_chunk(rest, last=True)
            missing = resampled_length(self._num_in, *self._rates) - self._num_out - len(rest)
            rest = np.pad(rest, (0, missing)) if missing > 0 else rest[: len(rest) + missing]
        return torch.from_numpy(rest)


def resample(blocks: Iterator[Tensor], source_rate: int, sample_rate: int) -> Iterator[Tensor]:
    """Yield a stream of blocks (s,) at another rate."""
    resampler = Resampler(source_rate, sample_rate)
    for block in blocks:
        if len(resampled := resampler.push(block)):
            yield resampled
    if len(resampled := resampler.finish()):
        yield resampled
