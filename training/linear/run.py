"""Linear evaluation: the accuracy of one linear layer on frozen features (paper, section IV-B).

Shapes: N clips, L layers, K features.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, PlainValidator

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import json_text, require_extra
from m2d_hub.model import M2D

from ..data.skipped import write_errors
from ..evaluation.clip_encoder import ClipEncoder, Pooling, mean_samples
from ..evaluation.labelled import LabelledList, Split, read_labelled
from ..evaluation.linear_fit import LEARNING_RATE, MAX_EPOCHS, PATIENCE, FitSettings
from ..evaluation.linear_folds import LinearResult, fit_folds
from ..evaluation.metrics import Interval
from ..evaluation.report import replacing_answer, require_own
from ..evaluation.unreadable import skip_unreadable, warn_of_skipped
from ..runs.folder import one_run_in
from ..runs.processes import stop_requests
from ..runs.settings import Positive, PositiveInt, settings
from .features import StoredFeatures, stored_features
from .report import METHOD, report_results, save_linear_model

logger = logging.getLogger(__name__)

CONFIG_FILE, MODEL_FOLDER = "config.json", "model"
FIRST_SEED = 42
# Of the linear layer, by whether the learning rate is "auto"; see evaluation/linear_fit.py.
PROTOCOLS = ("classifier of the paper's evaluation platform", "settings that converge (--lr auto)")
SEEDS = 6  # averaged in the paper's tables


def _layer(value: Any) -> int | str:
    if value in ("last", "all", "mix"):
        return str(value)
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(number) is int and number >= 1:
        return number
    raise ValueError("'last', 'all', 'mix', or the number of a block, from 1")


def _duration(value: Any) -> float | str:
    if value in ("mean", "none"):
        return str(value)
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if 0 < seconds < float("inf"):
        return seconds
    raise ValueError("'mean', 'none', or a positive number of seconds")


def _seeds(value: Any) -> tuple[int, ...]:
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(value) is int and value >= 1:
        return tuple(range(FIRST_SEED, FIRST_SEED + value))
    if isinstance(value, Sequence) and value and all(type(seed) is int for seed in value):
        return tuple(value)
    raise ValueError("a number of trainings, or one or more whole numbers")


@settings
class LinearEvalOptions:
    """Settings of a linear evaluation; the defaults are the paper's (section IV-B)."""

    layer: Annotated[int | str, PlainValidator(_layer)] = "last"  # a block from 1, "last", "all", or "mix"
    pooling: Pooling = "mean"  # of a clip's frames
    duration: Annotated[float | str, PlainValidator(_duration)] = "mean"  # of the cropped or padded clips, s
    window_s: Positive | None = None  # length that the encoder processes at once; None: as pre-trained

    learning_rate: Positive | Literal["auto"] = LEARNING_RATE  # of Adam; "auto": with settings that converge
    seeds: Annotated[Sequence[int], PlainValidator(_seeds)] = _seeds(SEEDS)  # a number counts up from 42
    max_epochs: PositiveInt = MAX_EPOCHS
    patience: PositiveInt = PATIENCE  # epochs
    valid_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the training clips, held out; 0: valid split
    multi_label: bool | None = None  # None: yes if any row has several labels

    cache: Annotated[Path | None, BeforeValidator(lambda path: path and Path(path))] = None  # None: features/
    device: str | None = None  # None: the best available
    batch_size: PositiveInt = 16  # windows encoded together; does not change the result
    num_workers: PositiveInt = 2  # threads that read audio
    progress: bool = True


@dataclass(frozen=True)
class LinearEvalResult:
    """Result of a linear evaluation: the figure on the test clips, its report and its model."""

    metric: str  # accuracy or mAP
    interval: Interval
    report: dict[str, Any]  # contents of report.json
    out: Path
    model: Path | None  # for m2d_hub.load_model; None if the features are not those of encode_clip
    left_out: int  # unreadable clips, see errors.csv


def linear_eval(
    *,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    **settings: Any,
) -> LinearEvalResult:
    """Evaluate a model's frozen features on a labelled list with a linear classifier.

    Features are computed once and cached, so an interrupted evaluation resumes. Unreadable clips are skipped
    and listed in ``errors.csv``.

    Args:
        model: As for :func:`m2d_hub.load_model`.
        data: CSV with file, label and split, or a folder ``train/CLASS/``, ``valid/CLASS/`` ...
        out: Output folder. An earlier result in it is replaced when the new one is complete.
        settings: Fields of :class:`LinearEvalOptions`.

    Raises:
        ConfigError: The list cannot be used, a setting does not suit the model, or ``out`` has other files.
    """
    require_extra("training", "linear evaluation")
    options = LinearEvalOptions(**settings)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("linear evaluation runs in one process; start it without torchrun or accelerate.")
    folder = Path(out)
    with stop_requests(), one_run_in(folder):
        _check_output(folder, Path(model))
        return _linear_eval(options, model, data, folder)


def _linear_eval(
    options: LinearEvalOptions, name: str | os.PathLike[str], data: str | os.PathLike[str], out: Path
) -> LinearEvalResult:
    started = time.perf_counter()
    labelled = read_labelled(data, options.multi_label, Split(valid_share=options.valid_share))
    model = load_model(name, device=options.device, window_s=options.window_s)
    layer = _checked_layer(options.layer, model.config.encoder.depth)
    encoder = _clip_encoder(options, labelled, model, all_layers=layer != "last")
    cache = options.cache or out / "features"
    features = stored_features(
        encoder,
        [clip.file for clip in labelled.clips],
        cache,
        num_workers=options.num_workers,
        progress=options.progress,
    )
    labelled, skipped = skip_unreadable(labelled, features.errors)
    warn_of_skipped(out, skipped)
    encoded = time.perf_counter()
    results = _fit_layers(options, labelled, features, layer, model.device)
    best = max(results, key=lambda result: (result.valid_score, -result.valid_loss))
    if not best.has_converged:
        logger.warning(
            "The linear layer was still improving on the valid clips after %d epochs, so the figure may be "
            "too low, as in the paper's protocol; use --lr auto, or more epochs.",
            options.max_epochs,
        )
    used = {**asdict(options), "model": str(name), "data": str(data), "out": str(out), "cache": str(cache)}
    details = {
        "model": str(name),
        "protocol": PROTOCOLS[options.learning_rate == "auto"],
        "model_config": model.config.to_dict(),
        "features_key": encoder.key(),
        "clip_seconds": None if encoder.num_samples is None else encoder.num_samples / model.sample_rate,
        "left_out": [asdict(clip) for clip in skipped],
        "settings": used,
        "timing": {
            "features_s": encoded - started,
            "clips_encoded": features.computed,
            "linear_layers_s": time.perf_counter() - encoded,
        },
    }
    has_model = best.layer in ("last", str(model.config.encoder.depth)) and options.pooling == "mean"
    with replacing_answer(out) as partial:
        (partial / CONFIG_FILE).write_text(json_text(used, indent=2) + "\n", encoding="utf-8")
        write_errors(partial, skipped)
        report = report_results(partial, results, best, details)
        if has_model:
            save_linear_model(partial / MODEL_FOLDER, model, best)
        else:
            logger.info("No model is saved: a head takes the mean over the frames of the last layer only.")
    saved = out / MODEL_FOLDER if has_model else None
    return LinearEvalResult(report["metric"], best.evaluation.interval, report, out, saved, len(skipped))


def _check_output(out: Path, model: Path) -> None:
    require_own(out, METHOD)
    saved = (out / MODEL_FOLDER).resolve()
    if model.resolve().is_relative_to(saved):
        raise ConfigError(f"{saved} is the model to evaluate and would be replaced; choose another output.")


def _checked_layer(layer: int | str, depth: int) -> str:
    """Return the layer as text; the last block's number becomes "last", which is the fastest to compute."""
    if isinstance(layer, int) and layer > depth:
        raise ConfigError(f"layer {layer} does not exist: the model has blocks 1 to {depth}.")
    return "last" if layer == depth else str(layer)


def _clip_encoder(
    options: LinearEvalOptions, labelled: LabelledList, model: M2D, all_layers: bool
) -> ClipEncoder:
    num_samples = None
    if options.duration == "mean":
        train = [clip.file for clip in labelled.clips if clip.split == "train"]
        every = [clip.file for clip in labelled.clips]  # each fold trains
        num_samples = mean_samples(train or every, model.sample_rate, options.num_workers)
        if num_samples is not None:
            logger.info(
                "Clips are cropped or zero-padded to %.2f s, the mean of the training clips; duration 'none' "
                "uses whole clips.",
                num_samples / model.sample_rate,
            )
    elif options.duration != "none":
        num_samples = max(1, round(float(options.duration) * model.sample_rate))
    return ClipEncoder(
        model,
        options.pooling,
        all_layers=all_layers,
        num_samples=num_samples,
        batch_size=options.batch_size,
    )


def _fit_layers(
    options: LinearEvalOptions,
    labelled: LabelledList,
    features: StoredFeatures,
    layer: str,
    device: torch.device,
) -> list[LinearResult]:
    """Return one result, or one per layer."""
    from tqdm import tqdm

    fit_settings = FitSettings(
        labelled.is_multi_label,
        options.learning_rate,
        max_epochs=options.max_epochs,
        patience=options.patience,
    )
    readable = [index for index in range(len(features.files)) if index not in features.errors]
    every = range(features.num_layers)
    groups: dict[str, Sequence[int]]
    if layer == "all":
        groups = {str(index + 1): [index] for index in every}
    else:
        groups = {layer: every if layer in ("last", "mix") else [int(layer) - 1]}
    results = []
    with tqdm(desc="linear layers", unit="epoch", disable=None if options.progress else True) as bar:
        for name, indices in groups.items():
            values = torch.stack([features.layer(index)[readable] for index in indices], dim=1)  # (N, L, K)
            results.append(
                fit_folds(name, values.to(device), labelled, options.seeds, fit_settings, bar.update)
            )
    return results
