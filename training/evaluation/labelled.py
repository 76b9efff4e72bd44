"""Labelled clips in splits or folds: what linear evaluation and fine-tuning learn from and are tested on.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import natural_key

from ..data.manifest import audioset_classes
from ..data.parts import AudioFile
from .labelled_rows import LabelledClip, check_files, counted, listed, read_rows

SPLITS = ("train", "valid", "test")
MIN_FOLDS = 3  # one to train on, one to choose on, one to test on


@dataclass(frozen=True)
class Part:
    """Clips that are used together, with what is to be predicted of them."""

    files: list[AudioFile]
    targets: Tensor  # (N, C) float32, 1 where the clip has the label
    rows: list[int]  # of the list, for messages

    def __len__(self) -> int:
        return len(self.files)

    @property
    def classes(self) -> Tensor:
        """Index of each clip's one label (N,), int64."""
        return self.targets.argmax(dim=1)


@dataclass(frozen=True)
class Round:
    """One training with its test: the only one of a list in splits, or one of each fold."""

    name: str  # "test", or "fold 3"
    train: Part
    valid: Part  # chooses the epoch
    test: Part


@dataclass(frozen=True)
class LabelledList:
    """All clips of a task."""

    name: str  # path of the CSV
    clips: list[LabelledClip]
    labels: tuple[str, ...]  # names of the classes, in the order of the targets' columns
    is_multi_label: bool  # whether a clip may have several labels

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {label: column for column, label in enumerate(self.labels)}

    def part(self, clips: Sequence[LabelledClip]) -> Part:
        """Some of the clips with their targets."""
        places = [(row, self._columns[label]) for row, clip in enumerate(clips) for label in clip.labels]
        targets = torch.zeros(len(clips), len(self.labels))
        if places:
            targets[tuple(torch.tensor(places).T)] = 1.0
        return Part([clip.file for clip in clips], targets, [clip.row for clip in clips])

    def rounds(self) -> list[Round]:
        """One round for train, valid and test; for folds, one each: the fold tests, the next one is valid."""
        by_split: dict[str, list[LabelledClip]] = defaultdict(list)
        for clip in self.clips:
            by_split[clip.split].append(clip)
        return [
            Round(
                name,
                train=self.part([clip for split in train for clip in by_split[split]]),
                valid=self.part(by_split[valid]),
                test=self.part(by_split[test]),
            )
            for name, train, valid, test in _plan_rounds(by_split)
        ]

    def without(self, rows: Collection[int]) -> LabelledList:
        """The list without some rows; its classes stay the same.

        Raises:
            ConfigError: What is left cannot be used.
        """
        left = [clip for clip in self.clips if clip.row not in rows]
        _check_splits(self.name, left)
        _check_unseen(self.name, left)
        return replace(self, clips=left)


def _plan_rounds(splits: Iterable[str]) -> Iterator[tuple[str, list[str], str, str]]:
    """Name of each round, and the splits that it trains on, chooses on and tests on."""
    if "train" in splits:
        yield "test", ["train"], "valid", "test"
        return
    folds = sorted(splits, key=int)
    for place, test in enumerate(folds):
        valid = folds[(place + 1) % len(folds)]
        yield f"fold {test}", [fold for fold in folds if fold not in (test, valid)], valid, test


def read_labelled(path: str | os.PathLike[str], multi_label: bool | None = None) -> LabelledList:
    """Reads a CSV with ``file`` (relative to it), ``label`` (several joined by ``;``) and ``split``.

    The optional ``start_s`` and ``end_s`` make a row a part of its file.

    Classes are in natural order (``class 2`` before ``class 10``); those of a multi-label list that are all
    AudioSet's are AudioSet's 527, in the order of the published heads.

    Args:
        path: The CSV, UTF-8. Splits are train, valid and test, or whole numbers: folds for cross-validation.
        multi_label: Whether a clip may have several labels; None: yes, if any row has several.

    Raises:
        ConfigError: The list cannot be used; the message names the rows.
    """
    clips = read_rows(Path(path))
    check_files(path, clips)
    _check_splits(path, clips)
    several = [clip.row for clip in clips if len(clip.labels) > 1]
    if multi_label is False and several:
        raise ConfigError(
            f"{path}: {counted(several)} more than one label ({listed(several)}), but one label a clip was "
            "asked for."
        )
    is_multi_label = bool(several) if multi_label is None else multi_label
    found = {label for clip in clips for label in clip.labels}
    if len(found) < 2:
        raise ConfigError(f"{path} has one class only, {found.pop()!r}; at least two are needed.")
    _check_unseen(path, clips)
    labels = (audioset_classes(found) if is_multi_label else None) or tuple(sorted(found, key=natural_key))
    return LabelledList(str(path), clips, labels, is_multi_label)


def _check_splits(path: str | os.PathLike[str], clips: list[LabelledClip]) -> None:
    numbers = {clip.split for clip in clips if re.fullmatch(r"\d+", clip.split, re.ASCII)}
    unknown = [clip for clip in clips if clip.split not in SPLITS and clip.split not in numbers]
    allowed = "splits are train, valid and test, or whole numbers: folds for cross-validation."
    if unknown:
        raise ConfigError(
            f"{path}: {counted([clip.row for clip in unknown])} an unknown split "
            f"({listed([f'{clip.row}: {clip.split!r}' for clip in unknown])}); {allowed}"
        )
    names = {clip.split for clip in clips} - numbers
    if names and numbers:
        rows = [clip.row for clip in clips if clip.split in numbers]
        raise ConfigError(f"{path} mixes {', '.join(sorted(names))} with folds ({listed(rows)}); {allowed}")
    if names and (empty := [split for split in SPLITS if split not in names]):
        raise ConfigError(f"{path} has no clip in the split {' or '.join(empty)}; all three are needed.")
    if numbers and len(numbers) < MIN_FOLDS:
        raise ConfigError(
            f"{path} has {len(numbers)} fold{'s' * (len(numbers) > 1)}; at least {MIN_FOLDS} are needed: to "
            "train on, to choose the epoch on and to test on."
        )


def _check_unseen(path: str | os.PathLike[str], clips: list[LabelledClip]) -> None:
    """Refuses labels that no training of any round sees."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        labels_of[clip.split].update(clip.labels)
    for name, train, valid, test in _plan_rounds(list(labels_of)):
        unseen = (labels_of[valid] | labels_of[test]).difference(*(labels_of[split] for split in train))
        if unseen:
            rows = [clip.row for clip in clips if unseen & set(clip.labels)]
            shown = sorted(unseen, key=natural_key)
            raise ConfigError(
                f"{path}: the training clips of the round {name!r} lack {listed(shown, 'label')}, which its "
                f"valid or test clips have ({listed(rows)}). Leave these rows out or divide the clips "
                "otherwise."
            )
