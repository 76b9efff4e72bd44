"""What a run reads before it starts: lists, noise, weights and teachers, and the sizes that they tell."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.errors import AudioError, ConfigError

from ..data.manifest import Manifest, read_manifest
from ..data.stored_features import features_width
from .config import AUDIOSET_MEAN, AUDIOSET_STD, PretrainConfig
from .signal_check import check_signal
from .start import start_weights
from .teachers import Teacher, TextTeacher, load_teacher, load_text_teacher

logger = logging.getLogger(__name__)

ASKED_WIDTHS = 50  # clips whose stored features are looked at before a run
NOTHING = "none"  # --start none, --teacher none: without the preset's own


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
class RunData:
    """What a run reads, and its configuration with what the data says filled in."""

    config: PretrainConfig
    manifest: Manifest
    noise: Manifest | None
    valid: Manifest | None
    classes: tuple[str, ...]
    noise_mean: float
    start_weights: dict[str, Tensor] | None


def read_data(config: PretrainConfig, options: RunOptions) -> RunData:
    """Reads the lists and the weights to start from.

    Raises:
        ConfigError: Data and configuration do not go together.
    """
    manifest = read_manifest(options.data)
    if (manifest.kind == "image") != config.is_image:
        raise ConfigError(
            f"{options.data} holds {manifest.kind} files, but in_channels is {config.in_channels}: "
            "pictures need 3, audio and spectrograms 1."
        )
    valid = None if options.valid is None else read_manifest(options.valid)
    weights = None if options.start in (None, NOTHING) else start_weights(options.start)
    config = _with_statistics(config, manifest, weights)
    config, noise = _read_noise(config, options)
    noise_mean = config.noise_mean
    if noise_mean is None:
        noise_mean = noise.statistics.mean if noise and noise.statistics else AUDIOSET_MEAN
    check_signal(config.offline, manifest)
    classes = manifest.classes() if config.offline is not None and config.offline.kind == "labels" else ()
    return RunData(config, manifest, noise, valid, classes, noise_mean, weights)


def _with_statistics(
    config: PretrainConfig, manifest: Manifest, weights: dict[str, Tensor] | None
) -> PretrainConfig:
    """Fills in mean and std: of the prepared data, else of the weights to start from, else AudioSet's."""
    mean, std = AUDIOSET_MEAN, AUDIOSET_STD
    if manifest.statistics is not None:
        if manifest.statistics.sample_rate != config.sample_rate and config.mean is None:
            raise ConfigError(
                f"{manifest.name} was prepared at {manifest.statistics.sample_rate} Hz, but sample_rate is "
                f"{config.sample_rate}: prepare it at that rate, or give mean and std."
            )
        mean, std = manifest.statistics.mean, manifest.statistics.std
    elif weights is not None and "norm_stats" in weights:
        mean, std = (float(value) for value in weights["norm_stats"])
    return dataclasses.replace(
        config,
        mean=mean if config.mean is None else config.mean,
        std=std if config.std is None else config.std,
    )


def _read_noise(config: PretrainConfig, options: RunOptions) -> tuple[PretrainConfig, Manifest | None]:
    if options.noise is None:
        if config.noise_ratio:
            logger.warning(
                "noise_ratio is %g but no --noise was given: this run mixes none (noise_ratio 0).",
                config.noise_ratio,
            )
        return dataclasses.replace(config, noise_ratio=0.0), None
    if not config.noise_ratio:
        raise ConfigError(
            "--noise was given but noise_ratio is 0: set it, for instance --set noise_ratio=0.2."
        )
    return config, read_manifest(options.noise)


def load_signal_teacher(
    data: RunData, options: RunOptions, device: torch.device
) -> Teacher | TextTeacher | None:
    """The frozen offline encoder, where the data does not carry the training signal itself."""
    offline = data.config.offline
    name = None if options.teacher == NOTHING else options.teacher
    if offline is None or offline.kind == "labels":
        if name is not None:
            raise ConfigError(
                f"--teacher {name} was given, but this method learns from no teacher: set offline.kind."
            )
        return None
    if data.manifest.entries[0].features_path:
        logger.info("%s carries features computed beforehand: no teacher is loaded.", data.manifest.name)
        return None
    if offline.kind == "text":
        return load_text_teacher(offline, name, device)
    return None if name is None else load_teacher(name, data.config, device)


def with_offline_sizes(data: RunData, teacher: Teacher | TextTeacher | None) -> PretrainConfig:
    """Fills in the widths of the offline network's training signal, and checks those that were given."""
    config, offline = data.config.resolve(), data.config.offline
    if offline is None:
        return config
    if offline.kind == "text":
        source = teacher.source if isinstance(teacher, TextTeacher) else offline.text_encoder
        width = offline.text_dim or _features_width(data, teacher)
        dim = offline.dim or config.embed_dim
        offline = dataclasses.replace(offline, dim=dim, text_dim=width, text_encoder=source)
        return dataclasses.replace(config, offline=offline)
    found = len(data.classes) if offline.kind == "labels" else _features_width(data, teacher)
    if not found:
        raise ConfigError(
            f"the offline network learns from {offline.kind}, but {data.manifest.name} has no such column"
            + (" and no --teacher was given." if offline.kind == "features" else ".")
        )
    if offline.dim not in (None, found):
        raise ConfigError(f"offline.dim is {offline.dim}, but the data's {offline.kind} need {found}.")
    return dataclasses.replace(config, offline=dataclasses.replace(offline, dim=found))


def _features_width(data: RunData, teacher: Teacher | TextTeacher | None) -> int:
    """Of the teacher's features, or of most of the first clips that have some stored."""
    entries = data.manifest.entries
    if not entries[0].features_path:
        return teacher.dim if teacher else 0
    widths: Counter[int] = Counter()
    for entry in entries[:ASKED_WIDTHS]:
        with contextlib.suppress(AudioError):
            widths[features_width(entry)] += 1
    if not widths:
        raise AudioError(f"{data.manifest.name}: the features of its first clips cannot be read.")
    return widths.most_common(1)[0][0]
