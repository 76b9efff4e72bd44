"""Waveforms from one rate to another, block by block, as if they were whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import requires
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError, M2DError
from m2d_hub.io import plain_tensors

MIN_RATE_HZ, MAX_RATE_HZ = 100, 10_000_000
MAX_FILTER_TAPS = 16_000_000  # numbers in a resampling kernel, 64 MB


def check_rate(rate: Any, what: str) -> int:
    """A sampling rate that can be resampled.

    Raises:
        AudioError: It is no whole number of Hz, or out of bounds; the message begins with ``what``.
    """
    is_number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
    if is_number and MIN_RATE_HZ <= rate <= MAX_RATE_HZ and rate == int(rate):
        return int(rate)
    raise AudioError(
        f"{what} must be a positive number of Hz, got {rate!r}; whole numbers from {MIN_RATE_HZ:,} to "
        f"{MAX_RATE_HZ:,} are taken."
    )


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


def resampled_length(num_samples: int, source_rate: int, sample_rate: int) -> int:
    """Samples at ``sample_rate`` of a waveform at ``source_rate``."""
    return int(-(-num_samples * _ratio(source_rate, sample_rate) // 1))


@lru_cache(maxsize=8)
def _resampler(numerator: int, denominator: int) -> Any:
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        raise M2DError(
            f"torchaudio, which resamples audio, does not load with torch {torch.__version__} ({error}). "
            f"Install a pair of one kind: {_install_a_pair()}"
        ) from error
    with plain_tensors():
        return torchaudio.transforms.Resample(orig_freq=denominator, new_freq=numerator)


def _install_a_pair() -> str:
    """The command for torch and torchaudio within this package's bounds, of the kind that torch is now."""
    pair = [need for need in requires("m2d-hub") or () if re.match(r"torch(audio)?\b(?!.*;)", need)]
    is_for_cpu = torch.version.cuda is None and torch.version.hip is None
    index = " --index-url https://download.pytorch.org/whl/cpu" if is_for_cpu else ""
    return f"pip install --force-reinstall {' '.join(map(shlex.quote, pair))}{index}"


def steps(source_rate: int, sample_rate: int) -> tuple[int, int, int]:
    """How far a stream can be entered without a trace of where.

    Returns:
        The least samples that give a whole number of resampled ones, these, and the samples on either side
        that the filter reaches.
    """
    ratio = _ratio(source_rate, sample_rate)
    if ratio == 1:
        return 1, 1, 0
    step = ratio.denominator
    return step, ratio.numerator, step * (1 + _resampler(ratio.numerator, step).width // step)


class Resampling:
    """A stream from one rate to another as if it were whole: each block carries its filter's context."""

    def __init__(self, source_rate: int, sample_rate: int):
        self._step, self._step_out, self._context = steps(source_rate, sample_rate)
        self._pending = torch.zeros(0, dtype=torch.float32, device="cpu")
        self._lead = 0  # samples of left context that pending begins with

    def push(self, block: Tensor) -> Tensor:
        """What can be resampled now that ``block`` (s,) follows, perhaps nothing."""
        if not self._context:
            return block
        self._pending = torch.cat([self._pending, block])
        lead = self._lead
        ready = (len(self._pending) - lead - self._context) // self._step * self._step
        if ready <= 0:
            return block[:0]
        resampled = self._resampler(self._pending[: lead + ready + self._context])
        first = lead // self._step * self._step_out
        keep = max(0, lead + ready - self._context)
        self._pending, self._lead = self._pending[keep:], lead + ready - keep
        return resampled[first : first + ready // self._step * self._step_out]

    def finish(self) -> Tensor:
        """What is left where the stream ends."""
        if len(self._pending) <= self._lead:
            return self._pending[:0]
        return self._resampler(self._pending)[self._lead // self._step * self._step_out :]

    def _resampler(self, waveform: Tensor) -> Tensor:
        return _resampler(self._step_out, self._step)(waveform)


def resample(blocks: Iterator[Tensor], source_rate: int, sample_rate: int) -> Iterator[Tensor]:
    """Blocks of a stream at another rate."""
    resampling = Resampling(source_rate, sample_rate)
    for block in blocks:
        if len(resampled := resampling.push(block)):
            yield resampled
    if len(resampled := resampling.finish()):
        yield resampled
