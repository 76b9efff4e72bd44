"""Audio in any format to tar shards of FLAC at the model's rate, with statistics and, on demand, features."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import logging
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from m2d_hub.audio import open_audio
from m2d_hub.config import FrontendConfig
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.crops import read_bytes
from ..data.manifest import STATISTICS_NAME, Entry, read_manifest
from ..data.shards import INDEX_NAME, index_shards, write_index
from .config import PretrainConfig
from .teachers import HubertTeacher, load_hubert_teacher

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30
SHARD_CLIPS = 10_000


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of ``m2d-train prepare``."""

    data: str
    out: Path
    sample_rate: int = 16_000  # Hz
    split_s: float | None = None  # longer clips are cut into parts of this length
    n_mels: int = 80
    teacher: str | None = None  # HuBERT, whose features are stored beside each clip
    num_workers: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Part:
    """One clip, or a part of a long one, ready to be stored."""

    flac: bytes
    waveform: np.ndarray  # (S,) float32
    log_mel_sum: float
    log_mel_squares: float
    log_mel_count: int


@dataclass(frozen=True)
class Prepared:
    """The parts of one file, or why there are none."""

    entry: Entry
    parts: list[Part]
    problem: str = ""


@dataclass
class Totals:
    """Sums over all parts."""

    clips: int = 0
    samples: int = 0
    values: int = 0
    total: float = 0.0
    squares: float = 0.0
    skipped: int = 0

    def add(self, part: Part) -> None:
        """Counts one part."""
        self.clips += 1
        self.samples += len(part.waveform)
        self.values += part.log_mel_count
        self.total += part.log_mel_sum
        self.squares += part.log_mel_squares

    def statistics(self, sample_rate: int) -> dict[str, float]:
        """Mean and standard deviation of the log-mel values, and what was counted."""
        mean = self.total / self.values
        return {
            "mean": mean,
            "std": math.sqrt(max(self.squares / self.values - mean**2, 0.0)),
            "sample_rate": sample_rate,
            "clips": self.clips,
            "hours": self.samples / sample_rate / 3600,
            "skipped": self.skipped,
        }


def prepare(options: PrepareOptions) -> dict[str, float]:
    """Writes shards, an index of their clips, and statistics into ``options.out``.

    Returns:
        The statistics, which are also in ``statistics.json``. Files that cannot be read are named in
        ``skipped.csv``.

    Raises:
        ConfigError: The folder is not empty, or no clip could be read.
    """
    import webdataset

    manifest = read_manifest(options.data)
    if manifest.kind != "audio":
        raise ConfigError(f"{options.data} holds {manifest.kind} files: only audio is prepared.")
    if options.split_s is not None and options.split_s <= 0:
        raise ConfigError(f"--split-s must be a positive number of seconds, got {options.split_s!r}.")
    if list(options.out.glob("*.tar")):
        raise ConfigError(f"{options.out} holds shards already: give another --out, or delete them.")
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = None if options.teacher is None else _load_teacher(options)
    totals = Totals()
    pattern = str(options.out / "shard-%06d.tar")
    with (
        webdataset.ShardWriter(pattern, maxcount=SHARD_CLIPS, maxsize=SHARD_BYTES, verbose=0) as writer,
        (options.out / "skipped.csv").open("w", newline="", encoding="utf-8") as lines,
    ):
        skipped = csv.writer(lines)
        skipped.writerow(["file", "reason"])
        for prepared in _prepare_all(manifest.entries, options):
            if prepared.problem:
                totals.skipped += 1
                logger.warning("left out: %s", prepared.problem)
                skipped.writerow([str(prepared.entry), prepared.problem])
            for part in prepared.parts:
                writer.write(_member(prepared.entry, part, totals.clips, teacher))
                totals.add(part)
    return _finish(options, totals)


def _finish(options: PrepareOptions, totals: Totals) -> dict[str, float]:
    if not totals.clips:
        raise ConfigError(f"none of the {totals.skipped} files of {options.data} can be read.")
    shards = sorted(str(shard) for shard in options.out.glob("*.tar"))
    write_index(options.out / INDEX_NAME, index_shards(shards))
    statistics = totals.statistics(options.sample_rate)
    (options.out / STATISTICS_NAME).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    return statistics


def _prepare_all(entries: list[Entry], options: PrepareOptions) -> Iterator[Prepared]:
    from tqdm import tqdm

    work = functools.partial(_prepare_file, options=options)
    hidden = not options.progress
    if not options.num_workers:
        yield from tqdm(map(work, entries), total=len(entries), desc="preparing", unit="file", disable=hidden)
        return
    with ProcessPoolExecutor(options.num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for start in tqdm(range(0, len(entries), 1024), desc="preparing", unit="kfile", disable=hidden):
            yield from pool.map(work, entries[start : start + 1024], chunksize=8)


def _prepare_file(entry: Entry, options: PrepareOptions) -> Prepared:
    try:
        return Prepared(entry, list(_parts(entry, options)))
    except AudioError as error:
        return Prepared(entry, [], f"{entry}: {error}")


def _parts(entry: Entry, options: PrepareOptions) -> Iterator[Part]:
    import soundfile

    frontend = _frontend(options.sample_rate, options.n_mels)
    for waveform in _split(entry, options):
        file = io.BytesIO()
        soundfile.write(file, waveform.numpy(), options.sample_rate, format="FLAC", subtype="PCM_16")
        log_mel = frontend.log_mel(waveform[None]).double()
        yield Part(
            flac=file.getvalue(),
            waveform=waveform.numpy(),
            log_mel_sum=float(log_mel.sum()),
            log_mel_squares=float(log_mel.square().sum()),
            log_mel_count=log_mel.numel(),
        )


@functools.cache
def _frontend(sample_rate: int, n_mels: int) -> LogMelFrontend:
    return LogMelFrontend(FrontendConfig.for_sample_rate(sample_rate, n_mels=n_mels))


def _split(entry: Entry, options: PrepareOptions) -> Iterable[torch.Tensor]:
    """Waveform of a file, in parts of ``split_s``; a last part below half of it joins the one before."""
    (clip,) = open_audio(io.BytesIO(read_bytes(entry)) if entry.size else entry.path, options.sample_rate)
    waveform = torch.cat(list(clip.blocks())).clamp(-1.0, 1.0)
    if options.split_s is None:
        return [waveform]
    length = round(options.split_s * options.sample_rate)
    count = max(1, round(len(waveform) / length))
    bounds = [part * length for part in range(count)] + [len(waveform)]
    return [waveform[start:stop] for start, stop in itertools.pairwise(bounds)]


def _member(entry: Entry, part: Part, index: int, teacher: HubertTeacher | None) -> dict:
    member = {
        "__key__": f"{index:09d}",
        "flac": part.flac,
        "json": {"label": entry.label, "caption": entry.caption, "file": Path(entry.name or entry.path).name},
    }
    if teacher is not None:
        with torch.no_grad():
            features = teacher.features(torch.from_numpy(part.waveform)[None])[0]
        member["features.npy"] = features.half().numpy()
    return member


def _load_teacher(options: PrepareOptions) -> HubertTeacher:
    """HuBERT for whole clips, which are cut to tokens when they are trained on."""
    config = PretrainConfig(sample_rate=options.sample_rate)
    return load_hubert_teacher(str(options.teacher), config, torch.device("cpu"))
