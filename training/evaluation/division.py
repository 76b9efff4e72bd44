"""How labelled clips are divided: what trains, what chooses the epoch, and what tests.

A list is in the splits train, valid and test, or in folds, of which each tests once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m2d_hub.checks import require, require_choice
from m2d_hub.corpus.tables import counted, listed
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import natural_key

from .labelled_rows import LabelledClip

Select = Literal["valid", "last", "test"]

SPLITS = ("train", "valid", "test")
VALID_SEED = 0  # of the draw of held-out clips, which no seed of a training changes


@dataclass(frozen=True)
class RoundPlan:
    """Splits of one training with its test."""

    name: str  # "test", or "fold 3"
    train: tuple[str, ...]
    valid: str | None  # None: held out of the training clips, or the test clips where these are looked at
    test: str


@dataclass(frozen=True)
class Division:
    """What a list's splits are used for."""

    select: Select = "valid"  # the epoch that counts: best on valid clips, the last, or best on test clips
    valid_share: float = 0.0  # of the training clips, held out at random to choose the epoch; 0: a split
    trains: bool = True  # or nothing is learnt, and the clips of the test alone count, or all folds

    def __post_init__(self) -> None:
        require_choice("select", self.select, ("valid", "last", "test"))
        require(
            isinstance(self.valid_share, (int, float)) and 0 <= self.valid_share < 1,
            f"valid_share must be from 0 to below 1, got {self.valid_share!r}.",
        )
        require(
            self.select == "valid" or not self.valid_share,
            f"valid_share holds clips out to choose the epoch on, but select={self.select!r} needs none: "
            "leave one of them out.",
        )

    @property
    def _needs_split(self) -> bool:
        return self.trains and self.select == "valid" and not self.valid_share

    def plan(self, splits: Collection[str]) -> list[RoundPlan]:
        """The rounds of a list that has these splits; in folds, the next one chooses the epoch."""
        if not self.trains:
            tested = sorted((split for split in splits if split not in ("train", "valid")), key=natural_key)
            return [RoundPlan(_round_name(split), (), None, split) for split in tested]
        if "train" in splits:
            trained: tuple[str, ...] = (
                ("train", "valid") if self.select != "valid" and "valid" in splits else ("train",)
            )
            return [RoundPlan("test", trained, "valid" if self._needs_split else None, "test")]
        folds = sorted(splits, key=int)
        plans = []
        for place, test in enumerate(folds):
            valid = folds[(place + 1) % len(folds)] if self._needs_split else None
            others = tuple(fold for fold in folds if fold not in (test, valid))
            plans.append(RoundPlan(_round_name(test), others, valid, test))
        return plans

    def hold_out(self, clips: Sequence[LabelledClip]) -> tuple[list[LabelledClip], list[LabelledClip]]:
        """Training clips, and those held out of them; no label loses its last training clip."""
        order = np.random.default_rng(VALID_SEED).permutation(len(clips))
        left = Counter(label for clip in clips for label in clip.labels)
        wanted = max(1, round(self.valid_share * len(clips)))
        held_out: set[int] = set()
        for place in order.tolist():
            if len(held_out) < wanted and all(left[label] > 1 for label in clips[place].labels):
                held_out.add(place)
                left.subtract(clips[place].labels)
        if not held_out:
            raise ConfigError(
                "no clip can be held out to choose the epoch on: every label has one training clip. "
                "Give a valid split, or select='last'."
            )
        return (
            [clip for place, clip in enumerate(clips) if place not in held_out],
            [clip for place, clip in enumerate(clips) if place in held_out],
        )

    def check(self, path: object, clips: Sequence[LabelledClip]) -> None:
        """Refuses a list whose splits cannot be used so.

        Raises:
            ConfigError: The message names the rows.
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
                f"{path} has no clip in the split test, but {', '.join(sorted(names))}: name the clips that "
                "count test, or give folds.",
            )
            return
        needed = SPLITS if self._needs_split else ("train", "test")
        if empty := [split for split in needed if split not in names]:
            only_valid = " Without one, valid_share=0.1 holds a tenth of the training clips out to choose on."
            raise ConfigError(
                f"{path} has no clip in the split {' or '.join(empty)}; "
                f"{'all three' if self._needs_split else 'train and test'} are needed."
                + (only_valid if empty == ["valid"] else "")
            )
        if self.valid_share and "valid" in names:
            raise ConfigError(f"{path} has a valid split: leave valid_share out, got {self.valid_share!r}.")

    def _check_folds(self, path: object, folds: set[str]) -> None:
        least = 3 if self._needs_split else 2
        if len(folds) < least:
            uses = ("train on", "choose the epoch on", "test on") if least == 3 else ("train on", "test on")
            raise ConfigError(
                f"{path} has {len(folds)} fold{'s' * (len(folds) > 1)}; at least {least} are needed: "
                f"to {', to '.join(uses)}."
            )


def _round_name(split: str) -> str:
    return f"fold {split}" if split.isdecimal() else split


BY_SPLITS = Division()  # as a list's splits are named
TEST_ALONE = Division(trains=False)
