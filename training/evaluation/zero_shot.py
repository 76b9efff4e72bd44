"""Classification of a labelled list by texts alone: how well a model with a text space knows classes by name.

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

from ..data.left_out import LeftOut, write_errors
from ..runs.folder import make_folder
from .division import TEST_ALONE
from .labelled import LabelledList, read_labelled
from .metrics import Interval, accuracy, mean_average_precision
from .report import Evaluation, ScoredRound, replacing_answer, require_own, write_report
from .unreadable import find_unreadable, leave_out, warn_of_left_out

logger = logging.getLogger(__name__)

METHOD = "zero-shot classification"
PLACE = "{}"  # of the label in a prompt
PROMPTS = ("{} can be heard",)


@dataclass(frozen=True)
class ZeroShotResult:
    """Result of a zero-shot evaluation: its figure on the test clips, and where its report is."""

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
    """Scores a labelled list by the similarity of its clips to its labels' names; nothing is trained.

    A label becomes a text by each prompt, its underscores spaces; several prompts' embeddings are averaged.

    Args:
        data: CSV with file, label and split; clips of the split ``test`` count, or all clips of folds.
        model: With a text space, such as ``m2d-clap-2024``; as for :func:`m2d_hub.load_model`.
        out: Folder of the report.
        prompts: Texts with ``{}`` where the label is to stand.
        device: None: the best there is.
        batch_size: Most windows encoded at once.
        progress: Show a progress bar over the clips.

    Raises:
        ConfigError: The list cannot be used, a prompt has no place for a label, or the model no text space.
        AudioError: More than half of the clips cannot be read.
    """
    require_extra("training", "zero-shot evaluation")
    _check_prompts(prompts)
    folder = Path(out)
    require_own(folder, METHOD)
    labelled = read_labelled(data, division=TEST_ALONE)
    embedder = load_model(model, device=device)
    embedder.required_clap()
    labelled, left_out = leave_out(labelled, find_unreadable(labelled))
    make_folder(folder)
    warn_of_left_out(folder, left_out)
    rounds = labelled.rounds()
    audio = embedder.encode_audio_text_space(
        [file for tested in rounds for file in tested.test.files],
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
            ScoredRound(tested.name, tested.test, given[None])
            for tested, given in zip(
                rounds, scores.split([len(tested.test) for tested in rounds]), strict=True
            )
        ],
    )
    with replacing_answer(folder) as partial:
        write_errors(partial, left_out)
        report = write_report(partial, evaluation, _details(model, prompts, left_out))
    return ZeroShotResult(evaluation.metric.name, evaluation.interval, report, folder, len(left_out))


def _details(
    model: str | os.PathLike[str], prompts: Sequence[str], left_out: list[LeftOut]
) -> dict[str, Any]:
    return {
        "method": METHOD,
        "model": str(model),
        "settings": {"prompts": list(prompts)},
        "left_out": [asdict(clip) for clip in left_out],
    }


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not prompts or any(PLACE not in prompt for prompt in prompts):
        raise ConfigError(
            f"prompts must be one or more texts with {PLACE} where the label is to stand, such as "
            f"{PROMPTS[0]!r}; got {prompts!r}."
        )


def _label_texts(model: M2D, labels: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Of each label the mean over the prompts, of unit length (C, E)."""
    names = [label.replace("_", " ") for label in labels]
    by_prompt = [
        model.encode_text([prompt.replace(PLACE, name) for name in names], normalize=True)
        for prompt in prompts
    ]
    return torch.nn.functional.normalize(torch.stack(by_prompt).mean(dim=0), dim=-1)


def _scores(model: M2D, audio: Tensor, texts: Tensor, labelled: LabelledList) -> Tensor:
    """Softmax over the labels, or the cosine brought to 0…1 where a clip may have several (N, C)."""
    cosine = audio @ texts.T
    if labelled.is_multi_label:
        return (1 + cosine) / 2
    return (model.required_clap().logit_scale.detach().exp().float().cpu() * cosine).softmax(dim=-1)
