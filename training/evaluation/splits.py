"""How the splits of a labelled list are used: which clips train, choose the epoch, and test.

A list has the splits train, valid and test, or numbered folds, each of which tests once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m2d_hub.checks import require
from m2d_hub.corpus.tables import counted, listed
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import natural_key

from ..data.annotations import AudioFile

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
class FoldPlan:
    """Splits of one training and its test."""

    name: str  # "test", or "fold 3"
    train: tuple[str, ...]
    valid: str | None  # None: held out of the training clips, or the test clips where select is not "valid"
    test: str


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

    def plan(self, splits: Collection[str]) -> list[FoldPlan]:
        """Return the folds of a list with these splits; of numbered folds, the next one chooses the epoch."""
        if not self.trains:
            tested = sorted((split for split in splits if split not in ("train", "valid")), key=natural_key)
            return [FoldPlan(_fold_name(split), (), None, split) for split in tested]
        if "train" in splits:
            with_valid = self.select != "valid" and "valid" in splits
            names: tuple[str, ...] = ("train", "valid") if with_valid else ("train",)
            return [FoldPlan("test", names, "valid" if self._needs_valid else None, "test")]
        folds = sorted(splits, key=int)
        plans = []
        for index, test in enumerate(folds):
            valid = folds[(index + 1) % len(folds)] if self._needs_valid else None
            train = tuple(fold for fold in folds if fold not in (test, valid))
            plans.append(FoldPlan(_fold_name(test), train, valid, test))
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
        if not held_out:
            raise ConfigError(
                "no clip can be held out to choose the epoch: every label has one training clip. "
                "Give a valid split, or select='last'."
            )
        return (
            [clip for index, clip in enumerate(clips) if index not in held_out],
            [clip for index, clip in enumerate(clips) if index in held_out],
        )

    def check(self, path: object, clips: Sequence[LabelledClip]) -> None:
        """Check that the splits of a list can be used in this way.

        Raises:
            ConfigError: They cannot; the message names the rows.
        """
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
            raise ConfigError(
                f"{path} mixes {', '.join(sorted(names))} with folds ({listed(rows)}); {allowed}"
            )
        if names:
            self._check_names(path, names)
        elif self.trains:
            self._check_folds(path, numbers)

    def _check_names(self, path: object, names: set[str]) -> None:
        if not self.trains:
            require(
                "test" in names,
                f"{path} has no clip in the split test, but {', '.join(sorted(names))}; name the clips to "
                "evaluate 'test', or give folds.",
            )
            return
        needed = SPLITS if self._needs_valid else ("train", "test")
        if empty := [split for split in needed if split not in names]:
            hint = " Or set valid_share=0.1 to hold out a tenth of the training clips."
            raise ConfigError(
                f"{path} has no clip in the split {' or '.join(empty)}; "
                f"{'all three' if self._needs_valid else 'train and test'} are needed."
                + (hint if empty == ["valid"] else "")
            )
        require(
            not self.valid_share or "valid" not in names,
            f"{path} has a valid split, so valid_share is not used; remove it, got {self.valid_share!r}.",
        )

    def _check_folds(self, path: object, folds: set[str]) -> None:
        uses = ["train", *(["choose the epoch"] if self._needs_valid else []), "test"]
        require(
            len(folds) >= len(uses),
            f"{path} has {len(folds)} fold{'s' * (len(folds) > 1)}; at least {len(uses)} are needed, to "
            f"{', to '.join(uses)}.",
        )


def _fold_name(split: str) -> str:
    return f"fold {split}" if split.isdecimal() else split


BY_SPLITS = Split()
TEST_ONLY = Split(trains=False)
