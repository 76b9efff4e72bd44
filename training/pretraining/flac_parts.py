"""Audio files to parts that are stored: FLAC at one rate, with the sums that statistics are made of."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import torch

from m2d_hub.audio import open_audio
from m2d_hub.config import FrontendConfig
from m2d_hub.errors import AudioError, M2DError
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.entries import Entry
from ..data.skipped import LeftOut
from ..data.statistics import Moments


@dataclass(frozen=True)
class PartSettings:
    """How files are cut and stored."""

    sample_rate: int  # Hz
    split_s: float | None  # longer clips are cut into parts of this length
    n_mels: int


@dataclass(frozen=True)
class Part:
    """One clip, or a part of a long one, ready to be stored."""

    flac: bytes
    waveform: np.ndarray  # (S,) float32
    moments: Moments  # of its log-mel values


@dataclass(frozen=True)
class Prepared:
    """The parts of one file, or why there are none."""

    entry: Entry
    parts: list[Part]
    problem: str = ""

    def left_out(self) -> LeftOut:
        """The file as one that cannot be read."""
        return LeftOut(self.entry.row, str(self.entry), self.problem)


def read_parts(
    entries: Sequence[Entry], settings: PartSettings, num_workers: int, progress: bool
) -> Iterator[Prepared]:
    """Reads files, in their order, by ``num_workers`` processes or by this one.

    Raises:
        M2DError: A process was killed.
    """
    from tqdm import tqdm

    work = functools.partial(_prepare_file, settings=settings)
    hidden = not progress
    if not num_workers:
        yield from tqdm(map(work, entries), total=len(entries), desc="preparing", unit="file", disable=hidden)
        return
    try:
        with ProcessPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for start in tqdm(range(0, len(entries), 1024), desc="preparing", unit="kfile", disable=hidden):
                yield from pool.map(work, entries[start : start + 1024], chunksize=8)
    except BrokenProcessPool as error:
        raise M2DError(
            "a process that decodes was killed, perhaps for want of memory: run it again with a smaller "
            "num_workers."
        ) from error


def _prepare_file(entry: Entry, settings: PartSettings) -> Prepared:
    try:
        return Prepared(entry, list(_parts(entry, settings)))
    except AudioError as error:
        return Prepared(entry, [], str(error))


def _parts(entry: Entry, settings: PartSettings) -> Iterator[Part]:
    import soundfile

    frontend = _frontend(settings.sample_rate, settings.n_mels)
    for waveform in _split(entry, settings):
        file = io.BytesIO()
        soundfile.write(file, waveform.numpy(), settings.sample_rate, format="FLAC", subtype="PCM_16")
        yield Part(
            flac=file.getvalue(),
            waveform=waveform.numpy(),
            moments=Moments.of(frontend.log_mel(waveform[None])),
        )


@functools.cache
def _frontend(sample_rate: int, n_mels: int) -> LogMelFrontend:
    return LogMelFrontend(FrontendConfig.for_sample_rate(sample_rate, n_mels=n_mels))


def _split(entry: Entry, settings: PartSettings) -> Iterable[torch.Tensor]:
    """Waveform of a file, in parts of ``split_s``; a last part below half of it joins the one before."""
    (clip,) = open_audio(entry.source(), settings.sample_rate)
    waveform = torch.cat(list(clip.blocks())).clamp(-1.0, 1.0)
    if settings.split_s is None:
        return [waveform]
    length = round(settings.split_s * settings.sample_rate)
    count = max(1, round(len(waveform) / length))
    bounds = [part * length for part in range(count)] + [len(waveform)]
    return [waveform[start:stop] for start, stop in itertools.pairwise(bounds)]
