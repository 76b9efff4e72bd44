"""What a run reads before it starts: lists, noise, weights and teachers, and the sizes that they tell."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2d_hub.errors import AudioError, ConfigError

from ..data.manifest import Manifest, read_manifest
from ..data.skipped import warn_of_missing
from ..data.stored_features import features_width
from ..runs.devices import resolve_precision
from ..runs.folder import RunFolder
from ..runs.resolved import read_config
from ..runs.schedules import warn_of_warmup
from ..runs.state import list_checkpoints
from .config import PretrainConfig
from .signal_check import check_signal
from .start import start_weights
from .statistics import with_statistics
from .teachers import Teacher, TextTeacher, load_teacher, load_text_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

ASKED_WIDTHS = 50  # clips whose stored features are looked at before a run
NOTHING = "none"  # as start or teacher: without the preset's own


@dataclass(frozen=True)
class RunOptions:
    """Data, start and folder of a pre-training run, beside its configuration."""

    name: str  # of the preset
    data: str
    out: Path
    noise: str | None = None
    valid: str | None = None
    start: str | None = None
    teacher: str | None = None
    labelled: str | None = None  # CSV with file, label and split, for the linear evaluation
    progress: bool = True


@dataclass(frozen=True)
class ResolvedRun:
    """What a run reads, and its configuration with all that this tells filled in: no other is in use."""

    config: PretrainConfig
    manifest: Manifest
    noise: Manifest | None
    valid: Manifest | None
    classes: tuple[str, ...]
    start_weights: dict[str, Tensor] | None
    teacher: Teacher | TextTeacher | None = None


def resolve_run(config: PretrainConfig, options: RunOptions, accelerator: Accelerator) -> ResolvedRun:
    """Reads lists, weights and teacher, and fills in what they tell of the configuration.

    Args:
        config: As the preset and the caller have it.
        options: Where the data are.
        accelerator: Of the run: its device, and its processes, of which the first one measures.

    Raises:
        ConfigError: Data and configuration do not go together.
    """
    device = accelerator.device
    earlier = _stored(RunFolder(options.out)).get("precision")
    config = dataclasses.replace(config, precision=resolve_precision(config.precision, device, earlier))
    read = _read_data(config, options, accelerator)
    read = dataclasses.replace(read, teacher=_load_signal_teacher(read, options, device))
    return dataclasses.replace(read, config=_with_offline_sizes(read))


def _read_data(config: PretrainConfig, options: RunOptions, accelerator: Accelerator) -> ResolvedRun:
    """Reads the lists and the weights to start from.

    Raises:
        ConfigError: Data and configuration do not go together.
    """
    warn_of_warmup(config.warmup_epochs, config.epochs)
    manifest = _read_list(options.data)
    if (manifest.kind == "image") != config.is_image:
        raise ConfigError(
            f"{options.data} holds {manifest.kind} files, but in_channels is {config.in_channels}: "
            "pictures need 3, audio and spectrograms 1."
        )
    valid = None if options.valid is None else _read_list(options.valid, "valid")
    folder = RunFolder(options.out)
    has_start = options.start not in (None, NOTHING) and not list_checkpoints(folder)
    weights = start_weights(options.start) if has_start and options.start else None
    config, noise = _read_noise(config, options)
    config = with_statistics(config, manifest, noise, _stored(folder), accelerator)
    check_signal(config.offline, manifest)
    classes = manifest.classes() if config.offline is not None and config.offline.kind == "labels" else ()
    return ResolvedRun(config, manifest, noise, valid, classes, weights)


def _stored(folder: RunFolder) -> dict[str, Any]:
    """Configuration of a run that goes on."""
    return read_config(folder)["config"] if folder.config_file.is_file() else {}


def _read_noise(config: PretrainConfig, options: RunOptions) -> tuple[PretrainConfig, Manifest | None]:
    if options.noise is None:
        if config.noise_ratio:
            logger.warning(
                "noise_ratio is %g but no noise was given: this run mixes none (noise_ratio 0).",
                config.noise_ratio,
            )
        return dataclasses.replace(config, noise_ratio=0.0), None
    if not config.noise_ratio:
        raise ConfigError("noise was given but noise_ratio is 0: set it, for instance noise_ratio=0.2.")
    return config, _read_list(options.noise)


def _read_list(data: str, split: str = "train") -> Manifest:
    manifest = read_manifest(data, split)
    warn_of_missing(manifest)
    return manifest


def _load_signal_teacher(
    read: ResolvedRun, options: RunOptions, device: torch.device
) -> Teacher | TextTeacher | None:
    """The frozen offline encoder, where the data does not carry the training signal itself."""
    offline = read.config.offline
    name = None if options.teacher == NOTHING else options.teacher
    if offline is None or offline.kind == "labels":
        if name is not None:
            raise ConfigError(
                f"the teacher {name} was given, but this method learns from no teacher: set offline.kind."
            )
        return None
    if read.manifest.entries[0].features_path:
        logger.info("%s carries features computed beforehand: no teacher is loaded.", read.manifest.name)
        return None
    if offline.kind == "text":
        return load_text_teacher(offline, name, device)
    return None if name is None else load_teacher(name, read.config, device)


def _with_offline_sizes(read: ResolvedRun) -> PretrainConfig:
    """Fills in the widths of the offline network's training signal, and checks those that were given."""
    config, offline, teacher = read.config.resolve(), read.config.offline, read.teacher
    if offline is None:
        return config
    if offline.kind == "text":
        source = teacher.source if isinstance(teacher, TextTeacher) else offline.text_encoder
        width = offline.text_dim or _features_width(read)
        dim = offline.dim or config.embed_dim
        offline = dataclasses.replace(offline, dim=dim, text_dim=width, text_encoder=source)
        return dataclasses.replace(config, offline=offline)
    found = len(read.classes) if offline.kind == "labels" else _features_width(read)
    if not found:
        raise ConfigError(
            f"the offline network learns from {offline.kind}, but {read.manifest.name} has no such column"
            + (" and no teacher was given." if offline.kind == "features" else ".")
        )
    if offline.dim not in (None, found):
        raise ConfigError(f"offline.dim is {offline.dim}, but the data's {offline.kind} need {found}.")
    return dataclasses.replace(config, offline=dataclasses.replace(offline, dim=found))


def _features_width(read: ResolvedRun) -> int:
    """Of the teacher's features, or of most of the first clips that have some stored."""
    entries = read.manifest.entries
    if not entries[0].features_path:
        return read.teacher.dim if read.teacher else 0
    widths: Counter[int] = Counter()
    for entry in entries[:ASKED_WIDTHS]:
        with contextlib.suppress(AudioError):
            widths[features_width(entry)] += 1
    if not widths:
        raise AudioError(f"{read.manifest.name}: the features of its first clips cannot be read.")
    return widths.most_common(1)[0][0]
