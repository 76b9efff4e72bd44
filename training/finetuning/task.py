"""A labelled list as a fine-tuning task: its folds and metric, and checks that the settings suit it."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, replace

from m2d_hub.errors import ConfigError

from ..data.images import is_image
from ..evaluation.labelled import Fold, LabelledList, read_labelled
from ..evaluation.metrics import Metric, accuracy, icbhi_score, mean_average_precision
from .config import FinetuneConfig


@dataclass(frozen=True)
class Task:
    """A labelled list with its folds and its metric."""

    labelled: LabelledList
    folds: list[Fold]
    metric: Metric
    normal: int | None = None  # index of the class that ICBHI's score calls normal

    def without(self, rows: set[int]) -> Task:
        """Return the task without some rows of the list.

        Raises:
            ConfigError: The remaining list cannot be used.
        """
        labelled = self.labelled.without(rows)
        return replace(self, labelled=labelled, folds=labelled.folds())

    def __post_init__(self) -> None:
        """Check that valid and test clips are both normal and abnormal, as ICBHI's score needs."""
        if self.normal is None:
            return
        for fold in self.folds:
            for use, subset in (("valid", fold.valid), ("test", fold.test)):
                is_normal = subset.classes == self.normal
                if is_normal.all() or not is_normal.any():
                    raise ConfigError(
                        f"{self.labelled.name}: the {use} clips of {fold.name!r} are "
                        f"{'all' if is_normal.any() else 'never'} {self.labelled.labels[self.normal]!r}; "
                        "metric 'icbhi' needs normal and abnormal ones."
                    )


def read_task(config: FinetuneConfig, data: str | os.PathLike[str]) -> Task:
    """Read a list and check that loss and metric suit it.

    Raises:
        ConfigError: They do not, or the list cannot be used.
    """
    is_multi_label = False if config.images is not None else True if config.loss == "bce" else None
    labelled = read_labelled(data, is_multi_label, config.split)
    _check_media(config, labelled)
    if labelled.is_multi_label:
        _check_multi_label(config, labelled)
        return Task(labelled, labelled.folds(), mean_average_precision)
    if config.metric != "icbhi":
        metric = mean_average_precision if config.metric == "map" else accuracy
        return Task(labelled, labelled.folds(), metric)
    names = [label.casefold() for label in labelled.labels]
    normal_class = unicodedata.normalize("NFC", config.normal_class).casefold()
    if normal_class not in names:
        raise ConfigError(
            f"metric 'icbhi' needs the normal class, but {config.normal_class!r} is not one of "
            f"{', '.join(labelled.labels)}; set normal_class."
        )
    normal = names.index(normal_class)
    return Task(labelled, labelled.folds(), icbhi_score(normal), normal)


def _check_media(config: FinetuneConfig, labelled: LabelledList) -> None:
    wants_images = config.images is not None
    others = [clip for clip in labelled.clips if is_image(os.fspath(clip.file)) != wants_images]
    if others:
        found, wanted = ("audio", "images") if wants_images else ("an image", "audio")
        raise ConfigError(
            f"{labelled.name}: row {others[0].row} is {found}, {others[0].file}, but these settings are for "
            f"{wanted}; the preset 'imagenet' is for images, all others are for audio."
        )


def _check_multi_label(config: FinetuneConfig, labelled: LabelledList) -> None:
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
            f"{labelled.name} has several labels per clip (row {several[0]} is the first of {len(several)}), "
            f"which {' and '.join(wrong)} does not support; remove it, or give one label per clip."
        )
