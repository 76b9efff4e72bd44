"""The lists that a run learns from, remembered, so that a run which goes on learns from the same ones."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2d_hub.audio import AudioPart
from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import reading_file, replacing

from .folder import RunFolder

LISTS_FILE = "lists.json.gz"


@dataclass(frozen=True)
class ListedClips:
    """What a list says of its clips, wherever it lies."""

    columns: tuple[str, ...]  # the first one names the clip
    rows: list[list[str]]

    @classmethod
    def of(cls, files: Sequence[str | AudioPart], columns: Mapping[str, Sequence[str]]) -> ListedClips:
        """Names files from the folder on that they have in common.

        Args:
            files: Paths, or parts of what is there.
            columns: What else is said of each, by the column's name.
        """
        parts = [file if isinstance(file, AudioPart) else AudioPart(file) for file in files]
        folders = {os.path.dirname(os.path.abspath(part.path)) for part in parts}
        root = os.path.commonpath(folders) if folders else ""
        names = [
            " ".join([os.path.relpath(part.path, root), *_span(part)]).replace(os.sep, "/") for part in parts
        ]
        rows = [list(row) for row in zip(names, *columns.values(), strict=True)]
        return cls(("file", *columns), rows)

    @classmethod
    def read(cls, values: dict[str, Any]) -> ListedClips:
        """The inverse of ``vars``.

        Raises:
            ValueError: These are no columns and rows of texts.
        """
        columns, rows = tuple(values["columns"]), values["rows"]
        if not columns or any(
            len(row) != len(columns) or not all(isinstance(cell, str) for cell in row)
            for row in (columns, *rows)
        ):
            raise ValueError("its rows are not as its columns")
        return cls(columns, rows)

    def difference(self, old: ListedClips) -> str:
        """What is not as it was; empty: nothing."""
        names, old_names = ([row[0] for row in listed.rows] for listed in (self, old))
        new, gone = Counter(names) - Counter(old_names), Counter(old_names) - Counter(names)
        if new or gone:
            told = [
                f"{sum(clips.values()):,} clips {what} (the first is {next(iter(clips))})"
                for clips, what in ((gone, "are missing"), (new, "are new"))
                if clips
            ]
            return " and ".join(told)
        if names != old_names:
            return "its clips are in another order"
        if self.columns != old.columns:
            return f"it told {', '.join(old.columns)} of each clip, now {', '.join(self.columns)}"
        for place, column in enumerate(self.columns[1:], start=1):
            pairs = zip(self.rows, old.rows, strict=True)
            changed = [(row[0], was[place], row[place]) for row, was in pairs if row[place] != was[place]]
            if changed:
                name, before, now = changed[0]
                return (
                    f"the {column} of {len(changed):,} clips is another (the first is {name}: {before!r} "
                    f"there, {now!r} now)"
                )
        return ""


def _span(part: AudioPart) -> list[str]:
    return [] if part.end_s is None and not part.start_s else [f"{part.start_s:g}-{part.end_s}"]


def write_or_compare_lists(folder: RunFolder, lists: dict[str, ListedClips | None]) -> None:
    """Writes the lists of a new run, or checks that a run that goes on has the same.

    Args:
        folder: The run.
        lists: By what they are for, such as "data" and "noise"; None: there is none.

    Raises:
        ConfigError: The message tells what is different.
        CheckpointError: The file is damaged.
    """
    path = folder.root / LISTS_FILE
    if path.exists():
        old = _read(path)
        told = {use: _difference(listed, old.get(use)) for use, listed in lists.items()}
        different = [f"{use}: {text}" for use, text in told.items() if text]
        if different:
            raise ConfigError(
                f"{folder.root} holds a run of other clips: {'; '.join(different)}. Give the same clips to "
                "resume it, or another out."
            )
        return
    values = {use: listed and vars(listed) for use, listed in lists.items()}
    with replacing(path) as partial, gzip.open(partial, "wt", encoding="utf-8", compresslevel=3) as text:
        json.dump(values, text)


def _difference(new: ListedClips | None, old: ListedClips | None) -> str:
    if new is None or old is None:
        return "" if new is old else "there was one, now there is none" if old else "there was none before"
    return new.difference(old)


def _read(path: os.PathLike[str]) -> dict[str, ListedClips | None]:
    way_out = "Delete it, if the clips are the same as before."
    with reading_file(path, "lists of a run", way_out, CheckpointError):
        with gzip.open(path, "rt", encoding="utf-8") as text:
            values: dict[str, Any] = json.load(text)
        return {use: None if listed is None else ListedClips.read(listed) for use, listed in values.items()}
