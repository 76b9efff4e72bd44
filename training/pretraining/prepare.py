"""Audio in any format to tar shards of FLAC at the model's rate, with statistics and optional features."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from m2d_hub.audio import open_audio
from m2d_hub.config import FrontendConfig
from m2d_hub.errors import AudioError, ConfigError, M2DError
from m2d_hub.io import replacing_folder, require_extra
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.entries import Entry
from ..data.manifest import STATISTICS_NAME, Manifest, read_manifest
from ..data.shards import INDEX_NAME, index_shards, write_index
from ..data.skipped import SkippedClip, refuse_too_many, warn_of_missing, write_errors
from ..data.statistics import mean_and_std, moments
from ..runs.folder import progress_bar
from ..runs.settings import Count, PositiveInt, require_given, settings
from .config import PretrainConfig
from .teachers import HubertTeacher, load_hubert_teacher

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30
SHARD_CLIPS = 10_000


@dataclass(frozen=True)
class PrepareResult:
    """Result of a preparation: the shards' folder, its contents, and its log-mel statistics."""

    out: Path
    clips: int
    hours: float
    left_out: int  # files that cannot be read, see errors.csv
    mean: float
    std: float
    sample_rate: int  # Hz


@settings
class PartSettings:
    """How files are cut and stored."""

    sample_rate: PositiveInt  # Hz
    split_s: Annotated[float, Field(ge=0.1)] | None
    n_mels: PositiveInt
    num_workers: Count


@dataclass(frozen=True)
class Part:
    """One clip, or a part of a long one, ready to be stored."""

    flac: bytes
    waveform: np.ndarray  # (S,) float32
    moments: np.ndarray  # (3,) of its log-mel values


@dataclass
class Totals:
    """Sums over all parts, and the files that cannot be read."""

    clips: int = 0
    samples: int = 0
    moments: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of the log-mel values
    skipped: list[SkippedClip] = field(default_factory=list)


def prepare(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] = "",
    *,
    sample_rate: int = 16_000,
    split_s: float | None = None,
    n_mels: int = 80,
    teacher: str | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> PrepareResult:
    """Write shards, an index of their clips, and statistics into ``out``, which exists once it is complete.

    Unfinished work is in ``<out>.partial`` beside it; a preparation that was killed starts again.

    Args:
        data: Folder or CSV of audio in any format.
        out: Folder for the shards.
        sample_rate: Rate of the shards in Hz.
        split_s: Length in seconds of the parts that longer clips are cut into; None: whole clips.
        n_mels: Mel bands of the statistics.
        teacher: HuBERT model whose features are stored beside each clip.
        num_workers: Processes that decode; 0: this process.
        progress: Show a progress bar.

    Raises:
        ConfigError: The folder is not empty, or the clips cannot be used.
        AudioError: More than half of the files cannot be read.
    """
    require_extra("training", "preparing shards")
    require_given(data=data, out=out)
    how = PartSettings(sample_rate=sample_rate, split_s=split_s, n_mels=n_mels, num_workers=num_workers)
    FrontendConfig.for_sample_rate(sample_rate, n_mels=n_mels)
    manifest, folder = read_manifest(os.fspath(data)), Path(out).resolve()  # a link is written through
    if manifest.kind != "audio":
        raise ConfigError(f"{data} holds {manifest.kind} files: only audio is prepared.")
    warn_of_missing(manifest)
    _check_out(folder)
    hubert = None
    if teacher is not None:  # of whole clips, whose features are cut to tokens in training
        config = PretrainConfig(sample_rate=sample_rate)
        hubert = load_hubert_teacher(teacher, config, torch.device("cpu"))
    with replacing_folder(folder) as partial:
        totals = _write_shards(partial, manifest, how, hubert, progress)
        write_errors(partial, totals.skipped)
        return _describe(partial, Path(out), how, totals)


def _check_out(out: Path) -> None:
    if out.is_dir() and (os.path.ismount(out) or out.samefile(Path.cwd())):
        raise ConfigError(f"{out} cannot be replaced as a whole: give a new folder inside it as out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists: give another folder as out, or delete it.")


def _write_shards(
    folder: Path, manifest: Manifest, how: PartSettings, teacher: HubertTeacher | None, progress: bool
) -> Totals:
    import webdataset

    totals, entries = Totals(), manifest.entries
    pattern = str(folder).replace("%", "%%") + "/shard-%06d.tar"
    limits = {"maxcount": SHARD_CLIPS, "maxsize": SHARD_BYTES, "mtime": 0}  # the same bytes each time
    with (
        webdataset.ShardWriter(pattern, **limits, verbose=0) as writer,
        progress_bar("preparing", 0, len(entries), "file", progress) as bar,
    ):
        for entry, parts in zip(entries, _read_parts(entries, how), strict=True):
            if isinstance(parts, SkippedClip):
                totals.skipped.append(parts)
                logger.warning("skipped: %s", parts.error)
                refuse_too_many(manifest.name, len(totals.skipped), len(entries), totals.skipped[0])
                parts = []
            for part in parts:
                writer.write(_member(entry, part, totals.clips, teacher))
                totals.clips += 1
                totals.samples += len(part.waveform)
                totals.moments += part.moments
            bar.update()
    return totals


def _describe(folder: Path, out: Path, how: PartSettings, totals: Totals) -> PrepareResult:
    """Write the index and the statistics of the shards in ``folder``."""
    hours = totals.samples / how.sample_rate / 3600
    mean, std = mean_and_std(totals.moments, str(out))
    result = PrepareResult(out, totals.clips, hours, len(totals.skipped), mean, std, how.sample_rate)
    write_index(folder / INDEX_NAME, index_shards(sorted(map(str, folder.glob("*.tar")))))
    statistics = {name: value for name, value in vars(result).items() if name != "out"}
    (folder / STATISTICS_NAME).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    return result


def _member(entry: Entry, part: Part, index: int, teacher: HubertTeacher | None) -> dict[str, Any]:
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


def _read_parts(entries: Sequence[Entry], how: PartSettings) -> Iterator[list[Part] | SkippedClip]:
    """Read files, in their order, by ``num_workers`` processes or by this one."""
    work = functools.partial(_prepare_file, how=how)
    if not how.num_workers:
        yield from map(work, entries)
        return
    try:
        with ProcessPoolExecutor(how.num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for start in range(0, len(entries), 1024):  # the results of more would fill the memory
                yield from pool.map(work, entries[start : start + 1024], chunksize=8)
    except BrokenProcessPool as error:
        raise M2DError(
            "a process that decodes was killed, perhaps for lack of memory: run it again with a smaller "
            "num_workers."
        ) from error


def _prepare_file(entry: Entry, how: PartSettings) -> list[Part] | SkippedClip:
    try:
        return list(_parts(entry, how))
    except AudioError as error:
        return SkippedClip(entry.row, str(entry), str(error))


def _parts(entry: Entry, how: PartSettings) -> Iterator[Part]:
    import soundfile

    frontend = _frontend(how.sample_rate, how.n_mels)
    for waveform in _split(entry, how):
        file = io.BytesIO()
        soundfile.write(file, waveform.numpy(), how.sample_rate, format="FLAC", subtype="PCM_16")
        yield Part(file.getvalue(), waveform.numpy(), moments(frontend.log_mel(waveform[None])))


@functools.cache
def _frontend(sample_rate: int, n_mels: int) -> LogMelFrontend:
    return LogMelFrontend(FrontendConfig.for_sample_rate(sample_rate, n_mels=n_mels))


def _split(entry: Entry, how: PartSettings) -> Iterable[torch.Tensor]:
    """Waveform of a file, in parts of ``split_s``; a last part below half of it joins the one before."""
    (clip,) = open_audio(entry.source(), how.sample_rate)
    waveform = torch.cat(list(clip.blocks())).clamp(-1.0, 1.0)
    if how.split_s is None:
        return [waveform]
    length = round(how.split_s * how.sample_rate)
    count = max(1, round(len(waveform) / length))
    bounds = [part * length for part in range(count)] + [len(waveform)]
    return [waveform[start:stop] for start, stop in itertools.pairwise(bounds)]
