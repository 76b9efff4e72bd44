"""Labelled lists: read and checked, with the folds of training and test clips made from them.

A list has the splits train, valid and test, or numbered folds, each of which tests once.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from m2d_hub.checks import require
from m2d_hub.corpus.tables import PART_COLUMNS, counted, listed, read_table, refuse_empty
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import natural_key

from ..data.annotations import AudioFile, audio_file, split_labels
from ..data.folders import FileLookup, class_folders
from ..data.manifest import audioset_classes

logger = logging.getLogger(__name__)

Select = Literal["valid", "last", "test"]

SPLITS = ("train", "valid", "test")
VALID_SEED = 0  # of the draw of held-out clips, independent of the training's seed


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One row of a labelled list."""

    file: AudioFile  # absolute path, or a part of a file
    labels: tuple[str, ...]
    split: str  # train, valid or test, or the number of a fold
    row: int  # as a spreadsheet shows it: the header is row 1; in a folder, the position from 1


@dataclass(frozen=True)
class Split:
    """What the splits of a list are used for."""

    select: Select = "valid"  # epoch to keep: best on the valid clips, the last, or best on the test clips
    valid_share: float = 0.0  # of the training clips, held out at random to choose the epoch; 0: a split
    trains: bool = True  # False: nothing is trained; only the test clips are used, or all folds

    def __post_init__(self) -> None:
        require(
            self.select == "valid" or not self.valid_share,
            f"valid_share holds out clips to choose the epoch, but select={self.select!r} does not use them; "
            "remove one of the two.",
        )

    @property
    def _needs_valid(self) -> bool:
        return self.trains and self.select == "valid" and not self.valid_share

    def plan(self, splits: Collection[str]) -> list[tuple[list[str], str, str]]:
        """Return the splits that train, choose the epoch and test, for each training."""
        if "test" in splits:
            also = ["valid"] if self.select != "valid" and "valid" in splits else []
            return [(["train", *also], "valid" if self._needs_valid else "test", "test")]
        folds = sorted(splits, key=int)
        plans = []
        for test, following in zip(folds, [*folds[1:], *folds[:1]], strict=True):
            valid = following if self._needs_valid else test
            plans.append(([fold for fold in folds if fold not in (test, valid)], valid, test))
        return plans

    def hold_out(self, clips: Sequence[LabelledClip]) -> tuple[list[LabelledClip], list[LabelledClip]]:
        """Divide training clips into those that train and those held out; each label keeps a training clip.

        Raises:
            ConfigError: Every label has only one training clip.
        """
        left = Counter(label for clip in clips for label in clip.labels)
        wanted = max(1, round(self.valid_share * len(clips)))
        held_out: set[int] = set()
        for index in np.random.default_rng(VALID_SEED).permutation(len(clips)).tolist():
            if len(held_out) < wanted and all(left[label] > 1 for label in clips[index].labels):
                held_out.add(index)
                left.subtract(clips[index].labels)
        require(
            bool(held_out),
            "no clip can be held out to choose the epoch: every label has one training clip. "
            "Give a valid split, or select='last'.",
        )
        train, valid = (
            [clip for index, clip in enumerate(clips) if (index in held_out) is is_held]
            for is_held in (False, True)
        )
        return train, valid

    def check(self, path: object, clips: Sequence[LabelledClip]) -> None:
        """Check that the splits of a list can be used in this way.

        Raises:
            ConfigError: They cannot; the message names the rows.
        """
        splits = {clip.split for clip in clips}
        folds = {split for split in splits if split.isascii() and split.isdecimal()}
        allowed = set(SPLITS) if splits & set(SPLITS) else folds
        if wrong := [f"{clip.row}: {clip.split!r}" for clip in clips if clip.split not in allowed]:
            raise ConfigError(
                f"{path}: {counted(wrong)} a split that cannot be used ({listed(wrong)}); give train, valid "
                "and test, or whole numbers: folds for cross-validation."
            )
        is_needed = (self.trains, self._needs_valid, True)
        needed = [split for split, is_used in zip(SPLITS, is_needed, strict=True) if is_used]
        if folds:
            require(
                len(folds) >= len(needed),
                f"{path} has {listed(sorted(folds), 'fold')}; {len(needed)} are needed, for "
                f"{', '.join(needed)}.",
            )
        elif empty := [split for split in needed if split not in splits]:
            hint = " Or set valid_share=0.1 to hold out a tenth of the training clips."
            raise ConfigError(
                f"{path} has no clip in the split {' or '.join(empty)}; needed: {', '.join(needed)}."
                + (hint if empty == ["valid"] else "")
            )
        require(
            not self.valid_share or "valid" not in splits,
            f"{path} has a valid split, so valid_share is not used; remove it, got {self.valid_share!r}.",
        )


BY_SPLITS = Split()


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

    def subset(self, clips: Sequence[LabelledClip]) -> Subset:
        """Return some of the clips with their targets."""
        column = {label: index for index, label in enumerate(self.labels)}
        labels = [tuple(column[label] for label in clip.labels) for clip in clips]
        rows = [clip.row for clip in clips]
        return Subset([clip.file for clip in clips], labels, len(self.labels), rows)

    def folds(self) -> list[Fold]:
        """Return the trainings with their tests."""
        by_split: dict[str, list[LabelledClip]] = defaultdict(list)
        for clip in self.clips:
            by_split[clip.split].append(clip)
        folds = []
        for trained, chosen_by, test in self.split.plan(by_split):
            train = [clip for split in trained for clip in by_split[split]]
            valid = by_split[chosen_by]
            if self.split.valid_share:
                train, valid = self.split.hold_out(train)
            folds.append(Fold(_fold_name(test), *map(self.subset, (train, valid, by_split[test]))))
        return folds

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
    clips = _read_clips(Path(path))
    split.check(path, clips)
    several = [clip.row for clip in clips if len(clip.labels) > 1]
    if multi_label is False and several:
        raise ConfigError(
            f"{path}: {counted(several)} more than one label ({listed(several)}), but only one label per "
            "clip is allowed."
        )
    is_multi_label = bool(several) if multi_label is None else multi_label
    found = {label for clip in clips for label in clip.labels}
    require(len(found) > 1, f"{path} has only one class, {min(found)!r}; at least two are needed.")
    if split.trains:
        _check_unseen(path, clips, split)
    else:
        clips = [clip for clip in clips if clip.split not in ("train", "valid")]
    labels = (audioset_classes(found) if is_multi_label else None) or tuple(sorted(found, key=natural_key))
    return LabelledList(str(path), clips, labels, is_multi_label, split)


def _fold_name(test: str) -> str:
    return f"fold {test}" if test.isdecimal() else test


def _check_unseen(path: str | os.PathLike[str], clips: list[LabelledClip], split: Split) -> None:
    """Refuse labels that a fold tests but does not train."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        labels_of[clip.split].update(clip.labels)
    for train, valid, test in split.plan(list(labels_of)):
        trained = set[str]().union(*(labels_of[name] for name in train))
        unseen = (labels_of[valid] | labels_of[test]) - trained
        if unseen:
            rows = [clip.row for clip in clips if unseen & set(clip.labels)]
            raise ConfigError(
                f"{path}: the training clips of {_fold_name(test)!r} lack {listed(sorted(unseen), 'label')}, "
                f"which its valid or test clips have ({listed(rows)}). Remove these rows or split the clips "
                "differently."
            )


def _read_clips(path: Path) -> list[LabelledClip]:
    """Read all rows of a CSV except blank ones, or the clips of a folder of splits and classes.

    Raises:
        ConfigError: The path is neither, lists nothing, lacks a value, or names a file that does not exist.
    """
    if path.is_dir():
        return [
            LabelledClip(os.path.abspath(file), (label,), split, number)
            for number, (file, label, split) in enumerate(class_folders(path), start=1)
        ]
    rows = read_table(path, ("file", "label", "split"), PART_COLUMNS)
    require(bool(rows), f"{path} lists no clips.")
    refuse_empty(path, rows, "file")
    refuse_empty(path, rows, "label")
    clips, folder = [], os.path.abspath(path.parent)
    for row in rows:
        file = audio_file(path, os.path.normpath(os.path.join(folder, row.cells["file"])), row)
        labels = split_labels(row.cells["label"])
        clips.append(LabelledClip(file, labels, row.cells["split"], row.number))
    listing = FileLookup()
    if missing := [f"{clip.row}: {clip.file}" for clip in clips if not listing.has(os.fspath(clip.file))]:
        raise ConfigError(
            f"{path}: {counted(missing)} a file that does not exist ({listed(missing)}). Paths are relative "
            "to the CSV."
        )
    split_of = {os.fspath(clip.file): clip.split for clip in clips}
    if shared := [clip for clip in clips if split_of[os.fspath(clip.file)] != clip.split]:
        logger.warning(
            "%s: %d clips are of files in several splits, for example %s; the result will be too high.",
            path,
            len(shared),
            shared[0].file,
        )
    return clips
