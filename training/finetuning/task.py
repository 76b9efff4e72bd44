"""A labelled list as a task of fine-tuning: how it is learnt, how it is scored, and what suits it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from m2d_hub.errors import ConfigError

from ..data.images import is_image
from ..data.skipped import LeftOut
from ..evaluation.labelled import Fold, LabelledList, read_labelled
from ..evaluation.metrics import Metric, accuracy, icbhi_score, mean_average_precision
from ..evaluation.unreadable import find_unreadable, read_picture, read_sound, skip_unreadable
from ..runs.measuring import first_tells
from .config import FinetuneConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Task:
    """A labelled list and how it is learnt and scored."""

    labelled: LabelledList
    rounds: list[Fold]
    metric: Metric
    normal: int | None  # index of the class that ICBHI's score calls normal

    @property
    def is_of_images(self) -> bool:
        """Whether its clips are pictures; they are of one kind."""
        return is_image(os.fspath(self.labelled.clips[0].file))


def read_task(config: FinetuneConfig, data: str) -> Task:
    """Reads the list and checks that loss and metric suit it.

    Raises:
        ConfigError: They do not, or the list cannot be used.
    """
    is_multi_label = False if config.images is not None else True if config.loss == "bce" else None
    labelled = read_labelled(data, is_multi_label, config.split)
    _check_kind(config, labelled)
    if labelled.is_multi_label:
        _refuse_single_label_settings(config, labelled)
        return Task(labelled, labelled.folds(), mean_average_precision, None)
    if config.metric == "icbhi":
        names = [label.casefold() for label in labelled.labels]
        if config.normal_class.casefold() not in names:
            raise ConfigError(
                f"metric 'icbhi' needs the normal class, but {config.normal_class!r} is none of "
                f"{', '.join(labelled.labels)}: set normal_class."
            )
        normal = names.index(config.normal_class.casefold())
        task = Task(labelled, labelled.folds(), icbhi_score(normal), normal)
        _check_normal_and_abnormal(task, normal)
        return task
    return Task(
        labelled, labelled.folds(), mean_average_precision if config.metric == "map" else accuracy, None
    )


def _check_kind(config: FinetuneConfig, labelled: LabelledList) -> None:
    """Sounds and pictures are learnt by settings of their own."""
    wants_images = config.images is not None
    others = [clip for clip in labelled.clips if is_image(os.fspath(clip.file)) != wants_images]
    if others:
        kinds = ("pictures", "a sound") if wants_images else ("sounds", "a picture")
        raise ConfigError(
            f"{labelled.name}: row {others[0].row} is {kinds[1]}, {others[0].file}, but these settings are "
            f"for {kinds[0]}: the preset 'imagenet' is for pictures, all others are for sounds."
        )


def without_unreadable(task: Task, accelerator: Accelerator) -> tuple[Task, list[LeftOut]]:
    """The task without clips that cannot be read, which would end a training when their turn comes.

    Args:
        task: With all clips.
        accelerator: Of the run: its first process reads them.
    """
    read = read_picture if task.is_of_images else read_sound
    reasons = first_tells(accelerator, lambda: find_unreadable(task.labelled, read))
    labelled, left_out = skip_unreadable(task.labelled, reasons)
    if not left_out:
        return task, []
    task = replace(task, labelled=labelled, rounds=labelled.folds())
    if task.normal is not None:
        _check_normal_and_abnormal(task, task.normal)
    return task, left_out


def _check_normal_and_abnormal(task: Task, normal: int) -> None:
    """Sensitivity and specificity need clips of both kinds wherever they are computed."""
    for round_ in task.rounds:
        for use, part in (("valid", round_.valid), ("test", round_.test)):
            is_normal = part.classes == normal
            if is_normal.all() or not is_normal.any():
                raise ConfigError(
                    f"{task.labelled.name}: the {use} clips of the round {round_.name!r} are "
                    f"{'all' if is_normal.any() else 'never'} {task.labelled.labels[normal]!r}; metric "
                    "'icbhi' needs normal and abnormal ones."
                )


def _refuse_single_label_settings(config: FinetuneConfig, labelled: LabelledList) -> None:
    several = [clip.row for clip in labelled.clips if len(clip.labels) > 1]
    wrong = [
        f"{name} {value!r}"
        for name, value, is_wrong in (
            ("loss", config.loss, config.loss == "cross-entropy"),
            ("metric", config.metric, config.metric not in (None, "map")),
            ("class_weights", config.class_weights, config.class_weights),
        )
        if is_wrong
    ]
    if wrong:
        raise ConfigError(
            f"{labelled.name} has several labels a clip (row {several[0]} is the first of {len(several)}), "
            f"which {' and '.join(wrong)} cannot take: leave them out, or give one label a clip."
        )
