"""Zero-shot classification of a labelled list by its labels' names, for models with a text space.

Shapes: N clips, C classes, P prompts, E width of the text space.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_hub.audio import open_audio, read_part
from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import require_extra
from m2d_hub.model import M2D

from ..data.annotations import AudioFile
from ..data.skipped import write_errors
from ..evaluation.labelled import LabelledList, Split, read_labelled
from ..evaluation.metrics import Interval, accuracy, mean_average_precision
from ..evaluation.report import Evaluation, ScoredFold, replacing_answer, require_own, write_report
from ..evaluation.unreadable import find_unreadable, skip_unreadable, warn_of_skipped
from ..runs.folder import make_folder, progress_bar

logger = logging.getLogger(__name__)

METHOD = "zero-shot classification"
LABEL_FIELD = "{}"  # of a prompt
PROMPTS = ("{} can be heard",)
CLIPS_AT_ONCE = 256  # in memory


@dataclass(frozen=True)
class ZeroShotTask:
    """How the paper's evaluation platform classifies a data set by names."""

    duration_s: float  # clips are cut from their start, or padded with silence
    prompt: str = PROMPTS[0]
    names: Mapping[str, str] = field(default_factory=dict)  # of labels whose text is another one


ZERO_SHOT_TASKS: dict[str, ZeroShotTask] = {
    "esc50": ZeroShotTask(5.0),
    "us8k": ZeroShotTask(4.0),
    "fsd50k": ZeroShotTask(7.6),
    "audioset": ZeroShotTask(10.0),
    "cremad": ZeroShotTask(
        2.5,
        "{} person talking can be heard",
        {"anger": "angry", "disgust": "disgusted", "fear": "fearful", "happiness": "happy", "sadness": "sad"},
    ),
    "gtzan": ZeroShotTask(30.0, "{} music can be heard"),
    "nsynth": ZeroShotTask(4.0, "the musical instrument sound of {} can be heard"),
}


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
    task: str | None = None,
    prompts: Sequence[str] = (),
    device: str | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> ZeroShotResult:
    """Classify a labelled list by the similarity of its clips to its labels' names; nothing is trained.

    Each prompt turns a label into a text, with spaces for underscores; embeddings of several prompts are
    averaged. The clips of all folds are scored together.

    Args:
        data: CSV with file, label and split; clips of the split ``test`` are used, or all clips of folds.
        model: With a text space, such as ``m2d-clap-2024``; as for :func:`m2d_hub.load_model`.
        out: Output folder.
        task: Data set in ``ZERO_SHOT_TASKS``, with the prompt, the names and the length of clips of the
            paper's evaluation platform; None: the prompt "{} can be heard" and whole clips.
        prompts: Texts with ``{}`` in place of the label; empty: that of the task.
        device: None: the best available.
        batch_size: Maximum number of windows encoded together.
        progress: Show a progress bar over the clips.

    Raises:
        ConfigError: The list cannot be used, a prompt lacks ``{}``, or the model has no text space.
        AudioError: More than half of the clips cannot be read.
    """
    require_extra("training", "zero-shot evaluation")
    if task is not None and task not in ZERO_SHOT_TASKS:
        raise ConfigError(f"Unknown task {task!r}. Available: {', '.join(ZERO_SHOT_TASKS)}.")
    how = None if task is None else ZERO_SHOT_TASKS[task]
    prompts = prompts or (PROMPTS if how is None else (how.prompt,))
    _check_prompts(prompts)
    folder = Path(out)
    require_own(folder, METHOD)
    labelled = read_labelled(data, split=Split(trains=False))
    embedder = load_model(model, device=device)
    embedder.required_clap()
    labelled, skipped = skip_unreadable(labelled, find_unreadable(labelled, progress=progress))
    make_folder(folder)
    warn_of_skipped(folder, skipped)
    tested = labelled.subset([clip for clip in labelled.clips if clip.split not in ("train", "valid")])
    audio = _audio(
        embedder, tested.files, None if how is None else how.duration_s, batch_size, progress
    )  # (N, E)
    names = [(how.names if how else {}).get(label, label) for label in labelled.labels]
    scores = _scores(embedder, audio, _label_texts(embedder, names, prompts), labelled)
    metric = mean_average_precision if labelled.is_multi_label else accuracy
    evaluation = Evaluation(labelled, metric, (0,), [ScoredFold("test", tested, scores[None])])
    with replacing_answer(folder) as partial:
        write_errors(partial, skipped)
        details = {
            "method": METHOD,
            "model": str(model),
            "settings": {"task": task, "prompts": list(prompts)},
            "left_out": [asdict(clip) for clip in skipped],
        }
        report = write_report(partial, evaluation, details)
    return ZeroShotResult(evaluation.metric.name, evaluation.interval, report, folder, len(skipped))


def _audio(
    model: M2D, files: Sequence[AudioFile], duration_s: float | None, batch_size: int, progress: bool
) -> Tensor:
    """Return the clips' embeddings of unit length (N, E)."""
    embeddings = []
    with progress_bar("clips", 0, len(files), "clip", progress) as bar:
        for start in range(0, len(files), CLIPS_AT_ONCE):
            part = files[start : start + CLIPS_AT_ONCE]
            clips = part if duration_s is None else [_unit(file, model, duration_s) for file in part]
            embeddings.append(
                model.encode_audio_text_space(clips, batch_size=batch_size, progress=False, normalize=True)
            )
            bar.update(len(part))
    return torch.cat(embeddings)


def _unit(file: AudioFile, model: M2D, duration_s: float) -> Tensor:
    """Return the first samples of a clip, padded with silence to ``duration_s`` (S,)."""
    num_samples = round(duration_s * model.sample_rate)
    (clip,) = open_audio(file, model.sample_rate)
    waveform = read_part(clip, 0, num_samples)
    return torch.nn.functional.pad(waveform, (0, num_samples - len(waveform)))


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
