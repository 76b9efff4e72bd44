"""Labelled lists: read and checked, with the folds of training and test clips made from them.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.corpus.tables import PART_COLUMNS, counted, listed, read_table, refuse_empty
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import natural_key

from ..data.annotations import AudioFile, audio_file, split_labels
from ..data.folders import FileLookup, class_folders
from ..data.manifest import audioset_classes
from .splits import BY_SPLITS, FoldPlan, LabelledClip, Split

logger = logging.getLogger(__name__)

COLUMNS = ("file", "label", "split")


@dataclass(frozen=True)
class Subset:
    """Clips that are used together, with their labels."""

    files: list[AudioFile]
    labels: list[tuple[int, ...]]  # of each clip, as indices of classes
    num_classes: int  # C
    rows: list[int]  # of the list, for messages

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def targets(self) -> Tensor:
        """Labels of all clips (N, C) float32, 1 where a clip has the label."""
        targets = torch.zeros(len(self), self.num_classes)
        pairs = [(row, label) for row, labels in enumerate(self.labels) for label in labels]
        if pairs:
            targets[tuple(torch.tensor(pairs).T)] = 1.0
        return targets

    def target(self, index: int) -> Tensor:
        """Labels of one clip (C,), without making those of a whole large list."""
        target = torch.zeros(self.num_classes)
        target[list(self.labels[index])] = 1.0
        return target

    @property
    def classes(self) -> Tensor:
        """Index of each clip's single label (N,), int64."""
        return self.targets.argmax(dim=1)


@dataclass(frozen=True)
class Fold:
    """One training with its test: the only one of a list in splits, or one per fold."""

    name: str  # "test", or "fold 3"
    train: Subset
    valid: Subset  # chooses the epoch; the test clips where no validation clips do
    test: Subset


@dataclass(frozen=True)
class LabelledList:
    """All clips of a task."""

    name: str  # path of the CSV
    clips: list[LabelledClip]
    labels: tuple[str, ...]  # names of the classes, in the order of the targets' columns
    is_multi_label: bool  # whether a clip may have several labels
    split: Split = BY_SPLITS

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {label: column for column, label in enumerate(self.labels)}

    def subset(self, clips: Sequence[LabelledClip]) -> Subset:
        """Return some of the clips with their targets."""
        labels = [tuple(self._columns[label] for label in clip.labels) for clip in clips]
        rows = [clip.row for clip in clips]
        return Subset([clip.file for clip in clips], labels, len(self.labels), rows)

    def folds(self) -> list[Fold]:
        """Return the trainings with their tests."""
        by_split: dict[str, list[LabelledClip]] = defaultdict(list)
        for clip in self.clips:
            by_split[clip.split].append(clip)
        return [self._fold(plan, by_split) for plan in self.split.plan(by_split)]

    def _fold(self, plan: FoldPlan, by_split: dict[str, list[LabelledClip]]) -> Fold:
        train = [clip for split in plan.train for clip in by_split[split]]
        valid = by_split[plan.valid or plan.test]
        if self.split.valid_share:
            train, valid = self.split.hold_out(train)
        return Fold(plan.name, self.subset(train), self.subset(valid), self.subset(by_split[plan.test]))

    def without(self, rows: Collection[int]) -> LabelledList:
        """Return the list without some rows; its classes stay the same.

        Raises:
            ConfigError: The remaining list cannot be used.
        """
        left = [clip for clip in self.clips if clip.row not in rows]
        self.split.check(self.name, left)
        if self.split.trains:
            _check_unseen(self.name, left, self.split)
        return replace(self, clips=left)


def read_labelled(
    path: str | os.PathLike[str], multi_label: bool | None = None, split: Split = BY_SPLITS
) -> LabelledList:
    """Read a CSV with ``file`` (relative to it), ``label`` (several joined by ``;``) and ``split``.

    The optional columns ``start_s`` and ``end_s`` select a part of the file. Instead of a CSV, give a folder
    with clips in ``train/CLASS/``, ``valid/CLASS/`` and ``test/CLASS/``.

    Classes are in natural order (``class 2`` before ``class 10``). If all labels of a multi-label list are
    AudioSet's, the classes are AudioSet's 527, in the order of the published heads. Labels that differ only
    in their Unicode form are one class.

    Args:
        path: The CSV in UTF-8, or a folder. Splits are train, valid and test, or whole numbers: folds for
            cross-validation.
        multi_label: Whether a clip may have several labels; None: yes, if any row has several.
        split: Use of the splits.

    Raises:
        ConfigError: The list cannot be used; the message names the rows.
    """
    clips = read_rows(Path(path))
    split.check(path, clips)
    several = [clip.row for clip in clips if len(clip.labels) > 1]
    if multi_label is False and several:
        raise ConfigError(
            f"{path}: {counted(several)} more than one label ({listed(several)}), but only one label per "
            "clip is allowed."
        )
    is_multi_label = bool(several) if multi_label is None else multi_label
    found = {label for clip in clips for label in clip.labels}
    if len(found) < 2:
        raise ConfigError(f"{path} has only one class, {found.pop()!r}; at least two are needed.")
    if split.trains:
        _check_unseen(path, clips, split)
    else:
        clips = [clip for clip in clips if clip.split not in ("train", "valid")]
    labels = (audioset_classes(found) if is_multi_label else None) or tuple(sorted(found, key=natural_key))
    return LabelledList(str(path), clips, labels, is_multi_label, split)


def _check_unseen(path: str | os.PathLike[str], clips: list[LabelledClip], split: Split) -> None:
    """Refuse labels that a fold tests but does not train."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        labels_of[clip.split].update(clip.labels)
    for plan in split.plan(list(labels_of)):
        judged = labels_of[plan.valid or plan.test] | labels_of[plan.test]
        unseen = judged.difference(*(labels_of[name] for name in plan.train))
        if unseen:
            rows = [clip.row for clip in clips if unseen & set(clip.labels)]
            shown = sorted(unseen, key=natural_key)
            raise ConfigError(
                f"{path}: the training clips of {plan.name!r} lack {listed(shown, 'label')}, which its valid "
                f"or test clips have ({listed(rows)}). Remove these rows or split the clips differently."
            )


def read_rows(path: Path) -> list[LabelledClip]:
    """Read all rows of a CSV except blank ones, or the clips of a folder of splits and classes.

    Raises:
        ConfigError: The path is neither, lists nothing, lacks a value, or names a file that does not exist.
    """
    if path.is_dir():
        return [
            LabelledClip(os.path.abspath(file), (label,), split, number)
            for number, (file, label, split) in enumerate(class_folders(path), start=1)
        ]
    rows = read_table(path, COLUMNS, PART_COLUMNS)
    if not rows:
        raise ConfigError(f"{path} lists no clips.")
    refuse_empty(path, rows, "file")
    unlabelled = [row.number for row in rows if not split_labels(row.cells["label"])]
    if unlabelled:
        raise ConfigError(f"{path}: {counted(unlabelled)} no label ({listed(unlabelled)}).")
    folder = os.path.abspath(path.parent)
    files = [os.path.normpath(os.path.join(folder, row.cells["file"])) for row in rows]
    clips = [
        LabelledClip(
            audio_file(path, file, row), split_labels(row.cells["label"]), row.cells["split"], row.number
        )
        for row, file in zip(rows, files, strict=True)
    ]
    _check_files(path, clips)
    return clips


def _check_files(path: Path, clips: list[LabelledClip]) -> None:
    """Refuse rows whose file does not exist, and warn about files that are in several splits.

    Raises:
        ConfigError: A file does not exist; the message names the rows.
    """
    listing = FileLookup()
    missing = [clip for clip in clips if not listing.has(os.fspath(clip.file))]
    if missing:
        raise ConfigError(
            f"{path}: {counted([clip.row for clip in missing])} a file that does not exist "
            f"({listed([f'{clip.row}: {clip.file}' for clip in missing])}). Paths are relative to the CSV."
        )
    splits_of: dict[str, set[str]] = defaultdict(set)  # by path: parts of one recording are similar
    for clip in clips:
        splits_of[os.fspath(clip.file)].add(clip.split)
    if shared := [file for file, splits in splits_of.items() if len(splits) > 1]:
        logger.warning(
            "%s: %d files are in more than one split, for example %s; the result will be too high.",
            path,
            len(shared),
            shared[0],
        )
