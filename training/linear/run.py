"""Linear evaluation: how well one linear layer tells classes apart on frozen features (paper, section IV-B).

Shapes: N clips, L layers, K features.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import json_text, require_extra
from m2d_hub.model import M2D

from ..data.left_out import write_errors
from ..evaluation.clip_encoder import ClipEncoder, mean_samples
from ..evaluation.division import Division
from ..evaluation.labelled import LabelledList, read_labelled
from ..evaluation.linear_layers import FitSettings
from ..evaluation.linear_rounds import Outcome, fit_rounds
from ..evaluation.metrics import Interval
from ..evaluation.report import replacing_answer, require_own
from ..evaluation.unreadable import leave_out, warn_of_left_out
from ..runs.folder import one_run_in
from ..runs.stopping import stop_requests
from .feature_cache import StoredFeatures, stored_features
from .model import save_linear_model
from .options import LinearEvalOptions
from .report import METHOD, report_outcomes

logger = logging.getLogger(__name__)

CONFIG_FILE, MODEL_FOLDER = "config.json", "model"


@dataclass(frozen=True)
class LinearEvalResult:
    """Result of a linear evaluation: its test figure, and where its model and its report are."""

    metric: str  # accuracy or mAP
    interval: Interval
    report: dict[str, Any]  # as report.json has it
    out: Path
    model: Path | None  # for m2d_hub.load_model; None where the features are not those of encode_clip
    left_out: int  # clips that cannot be read, see errors.csv


def linear_eval(options: LinearEvalOptions | None = None, **fields: Any) -> LinearEvalResult:
    """Evaluates a model's frozen features on a labelled list.

    Features are computed once and kept: a run that was stopped goes on where it was. Clips that cannot be
    read are left out, and listed in ``errors.csv``.

    Args:
        options: What to do.
        fields: Or its fields as keywords: ``model``, ``data`` and ``out`` at least.

    Raises:
        ConfigError: The list cannot be used, or an option contradicts the model.
    """
    require_extra("training", "linear evaluation")
    options = LinearEvalOptions(**fields) if options is None else dataclasses.replace(options, **fields)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("linear evaluation runs in one process: start it without torchrun or accelerate.")
    with stop_requests(), one_run_in(options.out):
        return _linear_eval(options)


def _linear_eval(options: LinearEvalOptions) -> LinearEvalResult:
    started = time.perf_counter()
    _check_output(options)
    labelled = read_labelled(options.data, options.multi_label, Division(valid_share=options.valid_share))
    model = load_model(options.model, device=options.device, window_s=options.window_s)
    layer = _checked_layer(options.layer, model.config.encoder.depth)
    encoder = _clip_encoder(options, labelled, model, all_layers=layer != "last")
    features = stored_features(
        encoder,
        [clip.file for clip in labelled.clips],
        options.features_folder,
        num_workers=options.num_workers,
        progress=options.progress,
    )
    labelled, left_out = leave_out(labelled, features.errors)
    warn_of_left_out(options.out, left_out)
    encoded = time.perf_counter()
    outcomes = _fit_outcomes(options, labelled, features, layer, model.device)
    best = max(outcomes, key=lambda outcome: (outcome.valid_score, -outcome.valid_loss))
    if not best.has_converged:
        _warn_of_limit(options, best)
    details = {
        "model": str(options.model),
        "model_config": model.config.to_dict(),
        "features_key": encoder.key(),
        "clip_seconds": None if encoder.num_samples is None else encoder.num_samples / model.sample_rate,
        "left_out": [asdict(clip) for clip in left_out],
        "settings": options.to_dict(),
        "timing": {
            "features_s": encoded - started,
            "clips_encoded": features.computed,
            "linear_layers_s": time.perf_counter() - encoded,
        },
    }
    with replacing_answer(options.out) as partial:
        settings = json_text(options.to_dict(), indent=2)
        (partial / CONFIG_FILE).write_text(settings + "\n", encoding="utf-8")
        write_errors(partial, left_out)
        report = report_outcomes(partial, outcomes, best, details)
        is_saved = _save_model(partial / MODEL_FOLDER, options, model, best)
    saved = options.out / MODEL_FOLDER if is_saved else None
    metric, interval = best.settings.metric.name, best.evaluation.interval
    return LinearEvalResult(metric, interval, report, options.out, saved, len(left_out))


def _check_output(options: LinearEvalOptions) -> None:
    require_own(options.out, METHOD)
    place = (options.out / MODEL_FOLDER).resolve()
    if Path(options.model).resolve().is_relative_to(place):
        raise ConfigError(f"{place} is the model to evaluate, and would be replaced; choose another output.")


def _checked_layer(layer: int | str, depth: int) -> str:
    """The layer as text; the last block by its number is "last", which is the cheapest to compute."""
    if isinstance(layer, int) and layer > depth:
        raise ConfigError(f"layer {layer} is not there: the model has {depth} blocks, 1 to {depth}.")
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
                "takes each clip whole.",
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


def _fit_outcomes(
    options: LinearEvalOptions,
    labelled: LabelledList,
    features: StoredFeatures,
    layer: str,
    device: torch.device,
) -> list[Outcome]:
    """One outcome, or one of each layer."""
    from tqdm import tqdm

    settings = FitSettings(
        labelled.is_multi_label,
        options.learning_rate,
        max_epochs=options.max_epochs,
        patience=options.patience,
    )
    readable = [place for place in range(len(features.files)) if place not in features.errors]
    every = range(features.num_layers)
    groups: dict[str, Sequence[int]]
    if layer == "all":
        groups = {str(index + 1): [index] for index in every}
    else:
        groups = {layer: every if layer in ("last", "mix") else [int(layer) - 1]}
    outcomes = []
    with tqdm(desc="linear layers", unit="epoch", disable=None if options.progress else True) as bar:
        for name, indices in groups.items():
            values = torch.stack([features.layer(index)[readable] for index in indices], dim=1)  # (N, L, K)
            outcomes.append(
                fit_rounds(name, values.to(device), labelled, options.training_seeds, settings, bar.update)
            )
    return outcomes


def _warn_of_limit(options: LinearEvalOptions, outcome: Outcome) -> None:
    rates = sorted({fitted.fit.learning_rate for fitted in outcome.rounds})
    advice = "more epochs" if options.learning_rate is None else "a higher learning rate, or more epochs"
    logger.warning(
        "With the learning rate %s the linear layer was still getting better on the valid clips after %d "
        "epochs, so the figure may be too low: give %s.",
        ", ".join(f"{rate:g}" for rate in rates),
        options.max_epochs,
        advice,
    )


def _save_model(folder: Path, options: LinearEvalOptions, model: M2D, best: Outcome) -> bool:
    """Saves the encoder with the linear layer, if its features are those that ``encode_clip`` gives."""
    is_last = best.layer in ("last", str(model.config.encoder.depth))
    if not is_last or options.pooling != "mean":
        logger.info("No model is saved: a head takes the mean over the frames of the last layer only.")
        return False
    fits = [(fitted.standardiser, fitted.fit) for fitted in best.rounds]
    save_linear_model(folder, model, best.labelled, fits)
    return True
