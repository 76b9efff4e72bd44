"""Labelled clips in splits or folds: what linear evaluation and fine-tuning learn from and are tested on.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.corpus.tables import counted, listed
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import natural_key

from ..data.manifest import audioset_classes
from ..data.parts import AudioFile
from .division import BY_SPLITS, Division, RoundPlan
from .labelled_rows import LabelledClip, read_rows


@dataclass(frozen=True)
class Part:
    """Clips that are used together, with what is to be predicted of them."""

    files: list[AudioFile]
    labels: list[tuple[int, ...]]  # of each clip, as indices of classes
    num_classes: int  # C
    rows: list[int]  # of the list, for messages

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def targets(self) -> Tensor:
        """What is to be predicted of all clips (N, C) float32, 1 where a clip has the label."""
        targets = torch.zeros(len(self), self.num_classes)
        places = [(row, label) for row, labels in enumerate(self.labels) for label in labels]
        if places:
            targets[tuple(torch.tensor(places).T)] = 1.0
        return targets

    def target(self, place: int) -> Tensor:
        """Of one clip (C,): those of a large list that is trained on are never all in memory."""
        target = torch.zeros(self.num_classes)
        target[list(self.labels[place])] = 1.0
        return target

    @property
    def classes(self) -> Tensor:
        """Index of each clip's one label (N,), int64."""
        return self.targets.argmax(dim=1)


@dataclass(frozen=True)
class Round:
    """One training with its test: the only one of a list in splits, or one of each fold."""

    name: str  # "test", or "fold 3"
    train: Part
    valid: Part  # chooses the epoch; the test clips where none does, or where these do
    test: Part


@dataclass(frozen=True)
class LabelledList:
    """All clips of a task."""

    name: str  # path of the CSV
    clips: list[LabelledClip]
    labels: tuple[str, ...]  # names of the classes, in the order of the targets' columns
    is_multi_label: bool  # whether a clip may have several labels
    division: Division = BY_SPLITS

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {label: column for column, label in enumerate(self.labels)}

    def part(self, clips: Sequence[LabelledClip]) -> Part:
        """Some of the clips with their targets."""
        labels = [tuple(self._columns[label] for label in clip.labels) for clip in clips]
        rows = [clip.row for clip in clips]
        return Part([clip.file for clip in clips], labels, len(self.labels), rows)

    def rounds(self) -> list[Round]:
        """The trainings with their tests, as the division has them."""
        by_split: dict[str, list[LabelledClip]] = defaultdict(list)
        for clip in self.clips:
            by_split[clip.split].append(clip)
        return [self._round(plan, by_split) for plan in self.division.plan(by_split)]

    def _round(self, plan: RoundPlan, by_split: dict[str, list[LabelledClip]]) -> Round:
        train = [clip for split in plan.train for clip in by_split[split]]
        valid = by_split[plan.valid or plan.test]
        if self.division.valid_share:
            train, valid = self.division.hold_out(train)
        return Round(plan.name, self.part(train), self.part(valid), self.part(by_split[plan.test]))

    def without(self, rows: Collection[int]) -> LabelledList:
        """The list without some rows; its classes stay the same.

        Raises:
            ConfigError: What is left cannot be used.
        """
        left = [clip for clip in self.clips if clip.row not in rows]
        self.division.check(self.name, left)
        if self.division.trains:
            _check_unseen(self.name, left, self.division)
        return replace(self, clips=left)


def read_labelled(
    path: str | os.PathLike[str], multi_label: bool | None = None, division: Division = BY_SPLITS
) -> LabelledList:
    """Reads a CSV with ``file`` (relative to it), ``label`` (several joined by ``;``) and ``split``.

    The optional ``start_s`` and ``end_s`` make a row a part of its file. Instead of a CSV there may be a
    folder with clips in ``train/CLASS/``, ``valid/CLASS/`` and ``test/CLASS/``.

    Classes are in natural order (``class 2`` before ``class 10``); those of a multi-label list that are all
    AudioSet's are AudioSet's 527, in the order of the published heads.

    Args:
        path: The CSV, UTF-8, or a folder. Splits are train, valid and test, or whole numbers: folds for
            cross-validation.
        multi_label: Whether a clip may have several labels; None: yes, if any row has several.
        division: What the splits are used for.

    Raises:
        ConfigError: The list cannot be used; the message names the rows.
    """
    clips = read_rows(Path(path))
    division.check(path, clips)
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
    if division.trains:
        _check_unseen(path, clips, division)
    else:
        clips = [clip for clip in clips if clip.split not in ("train", "valid")]
    labels = (audioset_classes(found) if is_multi_label else None) or tuple(sorted(found, key=natural_key))
    return LabelledList(str(path), clips, labels, is_multi_label, division)


def _check_unseen(path: str | os.PathLike[str], clips: list[LabelledClip], division: Division) -> None:
    """Refuses labels that no training of any round sees."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        labels_of[clip.split].update(clip.labels)
    for plan in division.plan(list(labels_of)):
        judged = labels_of[plan.valid or plan.test] | labels_of[plan.test]
        unseen = judged.difference(*(labels_of[split] for split in plan.train))
        if unseen:
            rows = [clip.row for clip in clips if unseen & set(clip.labels)]
            shown = sorted(unseen, key=natural_key)
            raise ConfigError(
                f"{path}: the training clips of the round {plan.name!r} lack {listed(shown, 'label')}, which "
                f"its valid or test clips have ({listed(rows)}). Leave these rows out or divide the clips "
                "otherwise."
            )
