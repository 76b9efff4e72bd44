"""Data of a pre-training run, read before it starts: lists, statistics, weights and teachers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.nn.text_encoder import load_text_encoder

from ..data.crops import CropPlan
from ..data.manifest import Manifest, read_manifest
from ..data.skipped import warn_of_missing
from ..data.statistics import measure_statistics
from ..data.stored_features import features_width
from ..runs.folder import RunFolder, read_config
from ..runs.loop import warn_of_warmup
from ..runs.processes import broadcast_from_main, resolve_precision
from ..runs.state import list_checkpoints
from .config import OfflineConfig, PretrainConfig
from .teachers import Teacher, TextTeacher, load_teacher
from .weights import start_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

NUM_WIDTHS = 50  # clips, of which one must have features that can be read
NOTHING = "none"  # as start or teacher: without the preset's


@dataclass(frozen=True)
class RunOptions:
    """Data, start and folder of a run; see the arguments of pretrain."""

    name: str  # of the preset
    data: str
    out: Path
    noise: str | None
    valid: str | None
    start: str | None
    teacher: str | None
    labelled: str | None
    progress: bool


@dataclass(frozen=True)
class ResolvedRun:
    """What a run reads, and its configuration completed by that."""

    config: PretrainConfig
    manifest: Manifest
    noise: Manifest | None
    valid: Manifest | None
    classes: tuple[str, ...]
    start_weights: dict[str, Tensor] | None
    teacher: Teacher | TextTeacher | None


def resolve_run(config: PretrainConfig, options: RunOptions, accelerator: Accelerator) -> ResolvedRun:
    """Read lists, weights and teacher, and complete the configuration.

    Raises:
        ConfigError: Data and configuration do not match.
    """
    warn_of_warmup(config.warmup_epochs, config.epochs)
    folder = RunFolder(options.out)
    stored = read_config(folder)["config"] if folder.config_file.is_file() else {}
    precision = resolve_precision(config.precision, accelerator.device, stored.get("precision"))
    config = dataclasses.replace(config, precision=precision)
    manifest = _read_list(options.data)
    if (manifest.kind == "image") != config.is_image:
        raise ConfigError(
            f"{options.data} holds {manifest.kind} files, but in_channels is {config.in_channels}: images "
            "need 3, audio and spectrograms 1."
        )
    valid = None if options.valid is None else _read_list(options.valid, "valid")
    starts = options.start not in (None, NOTHING) and not list_checkpoints(folder)
    weights = start_weights(options.start) if starts and options.start else None
    config, noise = _read_noise(config, options)
    config = with_statistics(config, manifest, noise, stored, accelerator)
    check_targets(config.offline, manifest)
    has_labels = config.offline is not None and config.offline.kind == "labels"
    classes = manifest.classes() if has_labels else ()
    teacher = _load_teacher(config, manifest, options.teacher, accelerator.device)
    config = _with_offline_sizes(config.resolve(), manifest, classes, teacher)
    return ResolvedRun(config, manifest, noise, valid, classes, weights, teacher)


def _read_list(data: str, split: str = "train") -> Manifest:
    manifest = read_manifest(data, split)
    warn_of_missing(manifest)
    return manifest


def _read_noise(config: PretrainConfig, options: RunOptions) -> tuple[PretrainConfig, Manifest | None]:
    if options.noise is None:
        if config.noise_ratio:
            logger.warning(
                "noise_ratio is %g, but no noise was given: this run mixes none (noise_ratio 0).",
                config.noise_ratio,
            )
        return dataclasses.replace(config, noise_ratio=0.0), None
    if not config.noise_ratio:
        raise ConfigError("noise was given, but noise_ratio is 0: set it, for instance noise_ratio=0.2.")
    return config, _read_list(options.noise)


def with_statistics(
    config: PretrainConfig,
    manifest: Manifest,
    noise: Manifest | None,
    stored: Mapping[str, Any],
    accelerator: Accelerator,
) -> PretrainConfig:
    """Fill in mean, std and noise_mean: as given, prepared, stored by the resumed run, or measured."""

    def measure(data: Manifest, plan: CropPlan, names: tuple[str, ...]) -> dict[str, float]:
        missing = [name for name in names if getattr(config, name) is None]
        if not missing:
            return {}
        if data.statistics is None and all(stored.get(name) is not None for name in missing):
            return {name: stored[name] for name in missing}
        found = data.statistics or broadcast_from_main(accelerator, lambda: measure_statistics(data, plan))
        if found.sample_rate != config.sample_rate:
            raise ConfigError(
                f"{data.name} was prepared at {found.sample_rate} Hz, but sample_rate is "
                f"{config.sample_rate}: prepare it at that rate, or give {' and '.join(missing)}."
            )
        return {name: found.std if name == "std" else found.mean for name in missing}

    if config.is_image:
        return config
    plan = CropPlan(config.frontend, config.input_size[1], short_clips=config.short_clips)
    found: dict[str, Any] = measure(manifest, plan, ("mean", "std"))
    if noise is not None:
        found |= measure(noise, dataclasses.replace(plan, short_clips="repeat"), ("noise_mean",))
    return dataclasses.replace(config, **found)


def check_targets(offline: OfflineConfig | None, manifest: Manifest) -> None:
    """Refuse data without the targets of the offline network.

    Some clips may have no labels, which the label loss then ignores; captions and precomputed features must
    exist for all clips or for none.

    Raises:
        ConfigError: The message counts the clips and names the first one.
    """
    entries = manifest.entries
    if offline is None:
        return
    if offline.kind == "labels" and not any(entry.labels for entry in entries):
        raise ConfigError(
            f"{manifest.name} has no labels, which the offline network learns from: add a column 'label', or "
            "set offline to none."
        )
    without = [entry for entry in entries if not entry.features_path]
    if offline.kind != "labels" and without and len(without) < len(entries):
        raise ConfigError(
            f"{manifest.name}: {len(without):,} of {len(entries):,} clips lack features, the first is "
            f"{without[0]}: give features for all clips, or for none."
        )
    no_text = [entry for entry in entries if not (entry.caption or entry.labels)]
    if offline.kind == "text" and without and no_text:
        raise ConfigError(
            f"{manifest.name}: {len(no_text):,} of {len(entries):,} clips have neither caption nor label, "
            f"the first is {no_text[0]}: contrastive learning needs a text for each clip."
        )


def _load_teacher(
    config: PretrainConfig, manifest: Manifest, name: str | None, device: torch.device
) -> Teacher | TextTeacher | None:
    """The frozen offline encoder, unless the data hold the targets."""
    offline = config.offline
    name = None if name == NOTHING else name
    if offline is None or offline.kind == "labels":
        if name is not None:
            raise ConfigError(
                f"the teacher {name} was given, but this method has no teacher: set offline.kind."
            )
        return None
    if manifest.entries[0].features_path:
        logger.info("%s holds precomputed features: no teacher is loaded.", manifest.name)
        return None
    if offline.kind == "text":
        source = name or offline.text_encoder
        return TextTeacher(load_text_encoder(source, offline.text_pooling), source, device)
    return None if name is None else load_teacher(name, config, device)


def _with_offline_sizes(
    config: PretrainConfig,
    manifest: Manifest,
    classes: tuple[str, ...],
    teacher: Teacher | TextTeacher | None,
) -> PretrainConfig:
    """Fill in the widths of the offline network's targets, and check those that were given."""
    offline = config.offline
    if offline is None:
        return config
    if offline.kind == "text":
        source = teacher.source if isinstance(teacher, TextTeacher) else offline.text_encoder
        width = offline.text_dim or _features_width(manifest, teacher)
        dim = offline.dim or config.embed_dim
        offline = dataclasses.replace(offline, dim=dim, text_dim=width, text_encoder=source)
        return dataclasses.replace(config, offline=offline)
    found = len(classes) if offline.kind == "labels" else _features_width(manifest, teacher)
    if not found:
        raise ConfigError(
            f"the offline network learns from {offline.kind}, but {manifest.name} has no such column"
            + (" and no teacher was given." if offline.kind == "features" else ".")
        )
    if offline.dim not in (None, found):
        raise ConfigError(f"offline.dim is {offline.dim}, but the data's {offline.kind} need {found}.")
    return dataclasses.replace(config, offline=dataclasses.replace(offline, dim=found))


def _features_width(manifest: Manifest, teacher: Teacher | TextTeacher | None) -> int:
    """Width of the teacher's features, or of the first stored features that can be read."""
    if not manifest.entries[0].features_path:
        return teacher.dim if teacher else 0
    for entry in manifest.entries[:NUM_WIDTHS]:
        with contextlib.suppress(AudioError):
            return features_width(entry)
    raise AudioError(f"{manifest.name}: the features of its first clips cannot be read.")
