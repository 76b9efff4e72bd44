"""Zero-shot classification of a labelled list by its labels' names, for models with a text space.

Shapes: N clips, C classes, P prompts, E width of the text space.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import require_extra
from m2d_hub.model import M2D

from ..data.skipped import write_errors
from ..evaluation.labelled import LabelledList, Split, read_labelled
from ..evaluation.metrics import Interval, accuracy, mean_average_precision
from ..evaluation.report import Evaluation, ScoredFold, replacing_answer, require_own, write_report
from ..evaluation.unreadable import find_unreadable, skip_unreadable, warn_of_skipped
from ..runs.folder import make_folder

logger = logging.getLogger(__name__)

METHOD = "zero-shot classification"
LABEL_FIELD = "{}"  # of a prompt
PROMPTS = ("{} can be heard",)


@dataclass(frozen=True)
class ZeroShotResult:
    """Result of a zero-shot evaluation: the figure on the test clips and the folder of the report."""

    metric: str  # accuracy or mAP
    interval: Interval
    report: dict[str, Any]  # as report.json has it
    out: Path
    left_out: int  # clips that cannot be read, see errors.csv


def zero_shot(
    data: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    prompts: Sequence[str] = PROMPTS,
    device: str | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> ZeroShotResult:
    """Classify a labelled list by the similarity of its clips to its labels' names; nothing is trained.

    Each prompt turns a label into a text, with spaces for underscores; embeddings of several prompts are
    averaged.

    Args:
        data: CSV with file, label and split; clips of the split ``test`` are used, or all clips of folds.
        model: With a text space, such as ``m2d-clap-2024``; as for :func:`m2d_hub.load_model`.
        out: Output folder.
        prompts: Texts with ``{}`` in place of the label.
        device: None: the best available.
        batch_size: Maximum number of windows encoded together.
        progress: Show a progress bar over the clips.

    Raises:
        ConfigError: The list cannot be used, a prompt lacks ``{}``, or the model has no text space.
        AudioError: More than half of the clips cannot be read.
    """
    require_extra("training", "zero-shot evaluation")
    _check_prompts(prompts)
    folder = Path(out)
    require_own(folder, METHOD)
    labelled = read_labelled(data, split=Split(trains=False))
    embedder = load_model(model, device=device)
    embedder.required_clap()
    labelled, skipped = skip_unreadable(labelled, find_unreadable(labelled, progress=progress))
    make_folder(folder)
    warn_of_skipped(folder, skipped)
    folds = labelled.folds()
    audio = embedder.encode_audio_text_space(
        [file for fold in folds for file in fold.test.files],
        batch_size=batch_size,
        progress=progress,
        normalize=True,
    )  # (N, E)
    scores = _scores(embedder, audio, _label_texts(embedder, labelled.labels, prompts), labelled)
    evaluation = Evaluation(
        labelled,
        mean_average_precision if labelled.is_multi_label else accuracy,
        (0,),
        [
            ScoredFold(fold.name, fold.test, fold_scores[None])
            for fold, fold_scores in zip(folds, scores.split([len(fold.test) for fold in folds]), strict=True)
        ],
    )
    with replacing_answer(folder) as partial:
        write_errors(partial, skipped)
        details = {
            "method": METHOD,
            "model": str(model),
            "settings": {"prompts": list(prompts)},
            "left_out": [asdict(clip) for clip in skipped],
        }
        report = write_report(partial, evaluation, details)
    return ZeroShotResult(evaluation.metric.name, evaluation.interval, report, folder, len(skipped))


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not prompts or any(LABEL_FIELD not in prompt for prompt in prompts):
        raise ConfigError(
            f"prompts must be one or more texts with {LABEL_FIELD} in place of the label, such as "
            f"{PROMPTS[0]!r}; got {prompts!r}."
        )


def _label_texts(model: M2D, labels: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Return each label's mean embedding over the prompts, of unit length (C, E)."""
    names = [label.replace("_", " ") for label in labels]
    by_prompt = [
        model.encode_text([prompt.replace(LABEL_FIELD, name) for name in names], normalize=True)
        for prompt in prompts
    ]
    return torch.nn.functional.normalize(torch.stack(by_prompt).mean(dim=0), dim=-1)


def _scores(model: M2D, audio: Tensor, texts: Tensor, labelled: LabelledList) -> Tensor:
    """Return the softmax over the labels, or for multi-label lists the cosine scaled to 0-1 (N, C)."""
    cosine = audio @ texts.T
    if labelled.is_multi_label:
        return (1 + cosine) / 2
    return (model.required_clap().logit_scale.detach().exp().float().cpu() * cosine).softmax(dim=-1)
