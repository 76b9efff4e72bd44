"""Labelled clips in splits or folds: what linear evaluation and fine-tuning learn from and are tested on.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.errors import ConfigError

from .manifest import LABEL_SEPARATOR, audioset_classes

logger = logging.getLogger(__name__)

COLUMNS = ("file", "label", "split")
SPLITS = ("train", "valid", "test")
MIN_FOLDS = 3  # one to train on, one to choose on, one to test on
SHOWN = 5  # rows that a message names

Row = tuple[int, list[str]]  # as a spreadsheet counts it, and its cells


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One row of the list."""

    file: str  # absolute path
    labels: tuple[str, ...]
    split: str  # train, valid or test, or a fold's number
    row: int  # as a spreadsheet shows it: the header is row 1


@dataclass(frozen=True)
class Part:
    """Clips that are used together, with what is to be predicted of them."""

    files: list[str]
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

    Classes are in natural order (``class 2`` before ``class 10``); those of a multi-label list that are all
    AudioSet's are AudioSet's 527, in the order of the published heads.

    Args:
        path: The CSV, UTF-8. Splits are train, valid and test, or whole numbers: folds for cross-validation.
        multi_label: Whether a clip may have several labels; None: yes, if any row has several.

    Raises:
        ConfigError: The list cannot be used; the message names the rows.
    """
    clips = _parse(Path(path))
    _check_files(path, clips)
    _check_splits(path, clips)
    several = [clip.row for clip in clips if len(clip.labels) > 1]
    if multi_label is False and several:
        raise ConfigError(
            f"{path}: {_counted(several)} more than one label ({_listed(several)}), but one label a clip was "
            "asked for."
        )
    is_multi_label = bool(several) if multi_label is None else multi_label
    found = {label for clip in clips for label in clip.labels}
    if len(found) < 2:
        raise ConfigError(f"{path} has one class only, {found.pop()!r}; at least two are needed.")
    _check_unseen(path, clips)
    labels = (audioset_classes(found) if is_multi_label else None) or tuple(sorted(found, key=_natural_key))
    return LabelledList(str(path), clips, labels, is_multi_label)


def _parse(path: Path) -> list[LabelledClip]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: give a CSV with the columns {', '.join(COLUMNS)}.")
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if not set(COLUMNS) <= set(header):
        raise ConfigError(
            f"{path} needs the columns file, label and split, separated by commas; it has "
            f"{', '.join(header) or 'none'}."
        )
    file, label, split = (header.index(name) for name in COLUMNS)
    body = [(row, [cell.strip() for cell in cells]) for row, cells in rows]
    body = [(row, cells) for row, cells in body if any(cells)]
    if not body:
        raise ConfigError(f"{path} lists no clips.")
    _refuse(
        path,
        [row for row, cells in body if len(cells) != len(header)],
        "another number of cells than the header",
    )
    folder = os.path.abspath(path.parent)
    clips = [
        LabelledClip(
            os.path.normpath(os.path.join(folder, cells[file])),
            _split_labels(cells[label]),
            cells[split],
            row,
        )
        for row, cells in body
    ]
    _refuse(path, [row for row, cells in body if not cells[file]], "no file")
    _refuse(path, [clip.row for clip in clips if not clip.labels], "no label")
    return clips


def _rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        try:
            yield from enumerate(csv.reader(lines), start=1)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path} is not a CSV in UTF-8 ({error}); save it as one.") from error


def _split_labels(text: str) -> tuple[str, ...]:
    labels = (label.strip() for label in text.split(LABEL_SEPARATOR))
    return tuple(dict.fromkeys(label for label in labels if label))


def _check_files(path: str | os.PathLike[str], clips: list[LabelledClip]) -> None:
    """Looks into each folder once: a call for each of 100,000 files takes long on a network's disk."""
    inside: dict[str, set[str]] = {}
    missing = []
    splits_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        folder, name = os.path.split(clip.file)
        if folder not in inside:
            inside[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        # Some file systems know a file by other spellings than the one that they list.
        if name not in inside[folder] and not os.path.isfile(clip.file):
            missing.append(clip)
        splits_of[clip.file].add(clip.split)
    if missing:
        raise ConfigError(
            f"{path}: {_counted([clip.row for clip in missing])} a file that does not exist "
            f"({_listed([f'{clip.row}: {clip.file}' for clip in missing])}). Paths are relative to the CSV."
        )
    if shared := [file for file, splits in splits_of.items() if len(splits) > 1]:
        logger.warning(
            "%s: %d files are in more than one split, for instance %s; the result is too good.",
            path,
            len(shared),
            shared[0],
        )


def _check_splits(path: str | os.PathLike[str], clips: list[LabelledClip]) -> None:
    numbers = {clip.split for clip in clips if re.fullmatch(r"\d+", clip.split, re.ASCII)}
    unknown = [clip for clip in clips if clip.split not in SPLITS and clip.split not in numbers]
    allowed = "splits are train, valid and test, or whole numbers: folds for cross-validation."
    if unknown:
        raise ConfigError(
            f"{path}: {_counted([clip.row for clip in unknown])} an unknown split "
            f"({_listed([f'{clip.row}: {clip.split!r}' for clip in unknown])}); {allowed}"
        )
    names = {clip.split for clip in clips} - numbers
    if names and numbers:
        rows = [clip.row for clip in clips if clip.split in numbers]
        raise ConfigError(f"{path} mixes {', '.join(sorted(names))} with folds ({_listed(rows)}); {allowed}")
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
            shown = sorted(unseen, key=_natural_key)
            raise ConfigError(
                f"{path}: the training clips of the round {name!r} lack {_listed(shown, 'label')}, which its "
                f"valid or test clips have ({_listed(rows)}). Leave these rows out or divide the clips "
                "otherwise."
            )


def _refuse(path: Path, rows: list[int], what: str) -> None:
    if rows:
        raise ConfigError(f"{path}: {_counted(rows)} {what} ({_listed(rows)}).")


def _counted(rows: Sequence[object]) -> str:
    return "1 row has" if len(rows) == 1 else f"{len(rows):,} rows have"


def _listed(values: Sequence[object], noun: str = "row") -> str:
    """The first few values, and how many more there are."""
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return f"{noun}{'s' * (len(values) > 1)} {', '.join(map(str, values[:SHOWN]))}{more}"


def _natural_key(label: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names as numbers."""
    parts = re.findall(r"\d+|\D+", label)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
