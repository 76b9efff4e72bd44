"""Audio in any format to tar shards of FLAC at the model's rate, with statistics and, on demand, features."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from m2d_hub.checks import COUNT, POSITIVE_INTEGER, Numbers, require_numbers
from m2d_hub.config import FrontendConfig
from m2d_hub.errors import ConfigError
from m2d_hub.io import replacing_folder, require_extra

from ..data.entries import Entry
from ..data.manifest import STATISTICS_NAME, Manifest, read_manifest
from ..data.shards import INDEX_NAME, index_shards, write_index
from ..data.skipped import LeftOut, refuse_too_many, warn_of_missing, write_errors
from ..data.statistics import MIN_STD, Moments
from ..runs.settings import require_given
from .config import PretrainConfig
from .flac_parts import Part, PartSettings, read_parts
from .teachers import HubertTeacher, load_hubert_teacher

logger = logging.getLogger(__name__)

NUMBERS = {
    "sample_rate": POSITIVE_INTEGER,
    "split_s": Numbers(least=0.1, or_none="whole clips"),
    "n_mels": POSITIVE_INTEGER,
    "num_workers": COUNT,
}
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

    def __post_init__(self) -> None:
        require_numbers(self, NUMBERS)
        FrontendConfig.for_sample_rate(self.sample_rate, n_mels=self.n_mels)


@dataclass(frozen=True)
class PrepareResult:
    """Result of a preparation: the shards' folder, what it holds, and its log-mel statistics."""

    out: Path
    clips: int
    hours: float
    left_out: int  # files that cannot be read, see errors.csv
    mean: float
    std: float
    sample_rate: int  # Hz


@dataclass
class Totals:
    """Sums over all parts."""

    clips: int = 0
    samples: int = 0
    moments: Moments = field(default_factory=Moments)  # of the log-mel values

    def add(self, part: Part) -> None:
        """Counts one part."""
        self.clips += 1
        self.samples += len(part.waveform)
        self.moments += part.moments


def prepare(
    data: str | os.PathLike[str] | PrepareOptions, out: str | os.PathLike[str] = "", **fields: Any
) -> PrepareResult:
    """Writes shards, an index of their clips, and statistics into ``out``, whole or not at all.

    What is in work stands in ``<out>.partial`` beside it; a preparation that was killed starts again.

    Args:
        data: Folder or CSV of audio in any format; or all options in one object.
        out: Folder for the shards.
        fields: Further fields of :class:`PrepareOptions`, such as ``split_s=10.0``.

    Raises:
        ConfigError: The folder holds something already, or the clips are of no use.
        AudioError: More than half of the files cannot be read.
    """
    require_extra("training", "preparing shards")
    if not isinstance(data, PrepareOptions):
        require_given(data=data, out=out)
        data = PrepareOptions(os.fspath(data), Path(out), **fields)
    options = data
    manifest = read_manifest(options.data)
    if manifest.kind != "audio":
        raise ConfigError(f"{options.data} holds {manifest.kind} files: only audio is prepared.")
    warn_of_missing(manifest)
    _check_out(options.out)
    teacher = None if options.teacher is None else _load_teacher(options)
    with replacing_folder(options.out.absolute()) as folder:
        totals, left_out = _write_shards(folder, manifest, options, teacher)
        write_errors(folder, left_out)
        return _describe(folder, options, totals, len(left_out))


def _check_out(out: Path) -> None:
    if out.is_dir() and (os.path.ismount(out) or out.samefile(Path.cwd())):
        raise ConfigError(f"{out} cannot be replaced as a whole: give a new folder inside it as out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: give another folder as out, or delete it.")


def _write_shards(
    folder: Path, manifest: Manifest, options: PrepareOptions, teacher: HubertTeacher | None
) -> tuple[Totals, list[LeftOut]]:
    import webdataset

    totals, left_out = Totals(), list[LeftOut]()
    settings = PartSettings(options.sample_rate, options.split_s, options.n_mels)
    pattern = str(folder / "shard-%06d.tar")
    limits = {"maxcount": SHARD_CLIPS, "maxsize": SHARD_BYTES}
    with webdataset.ShardWriter(pattern, **limits, mtime=0, verbose=0) as writer:  # the same bytes each time
        for prepared in read_parts(manifest.entries, settings, options.num_workers, options.progress):
            if prepared.problem:
                left_out.append(prepared.left_out())
                logger.warning("left out: %s", prepared.problem)
                refuse_too_many(manifest.name, len(left_out), len(manifest.entries), left_out[0])
            for part in prepared.parts:
                writer.write(_member(prepared.entry, part, totals.clips, teacher))
                totals.add(part)
    return totals, left_out


def _describe(folder: Path, options: PrepareOptions, totals: Totals, left_out: int) -> PrepareResult:
    """Writes the index and the statistics of the shards in ``folder``."""
    if totals.moments.std < MIN_STD:
        raise ConfigError(
            f"the clips of {options.data} are all silent: their log-mel values have no spread to train on."
        )
    hours = totals.samples / options.sample_rate / 3600
    numbers = (totals.clips, hours, left_out, totals.moments.mean, totals.moments.std, options.sample_rate)
    result = PrepareResult(options.out, *numbers)
    write_index(folder / INDEX_NAME, index_shards(sorted(map(str, folder.glob("*.tar")))))
    statistics = {name: value for name, value in vars(result).items() if name != "out"}
    (folder / STATISTICS_NAME).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    return result


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
