"""Labels, captions, splits and parts: what a row of a list, or a file of a shard, says about a clip."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from m2d_hub.audio import AudioPart
from m2d_hub.corpus.tables import PART_COLUMNS, Row
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading

LABEL_SEPARATOR = ";"
CAPTION_SEPARATOR = "\n"
LABEL_NAMES = ("label", "labels")  # of columns, and of values in a .json; the first that is filled counts
CAPTION_NAMES = ("caption", "captions", "text")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}

AudioFile = str | AudioPart  # a path, or a part of that file


@dataclass(frozen=True)
class Annotation:
    """Labels and caption of a clip, as far as they are known."""

    label: str = ""  # several are joined by ';'
    caption: str = ""  # several are separate lines

    def __or__(self, other: Annotation) -> Annotation:
        """Fill in what this annotation lacks from another."""
        return Annotation(self.label or other.label, self.caption or other.caption)


@lru_cache(maxsize=10_000)
def split_labels(text: str) -> tuple[str, ...]:
    """Return the distinct labels of a text in which they are joined by ``;``.

    Labels are in composed Unicode form: macOS writes the decomposed form, which looks the same.
    """
    labels = (label.strip() for label in unicodedata.normalize("NFC", text).split(LABEL_SEPARATOR))
    return tuple(dict.fromkeys(label for label in labels if label))


def standard_split(split: str) -> str | None:
    """Return train, valid or test for a synonym of it, the number of a fold as it is, None otherwise."""
    return split if split.isdecimal() else SPLIT_NAMES.get(split.casefold())


def annotation_of_row(cells: Mapping[str, str]) -> Annotation:
    """Return labels and caption of a list's row."""
    label, caption = (
        next((cells[name] for name in names if cells[name]), "") for names in (LABEL_NAMES, CAPTION_NAMES)
    )
    return Annotation(label, caption)


def read_annotation(name: str, content: bytes) -> Annotation:
    """Read labels and caption from a ``.json``, or the caption from a ``.txt``.

    A value may be a text, a number, or a list of these; null is unknown.

    Args:
        name: Name of the file.
        content: Its bytes.

    Raises:
        ConfigError: The file is not UTF-8, not a JSON object, or holds values of other types.
    """
    if name.lower().endswith(".txt"):
        with reading(name, "text", "Save it in UTF-8.", ConfigError):
            return Annotation(caption=" ".join(content.decode("utf-8-sig").split()))
    with reading(name, "labels and a caption", "Write a JSON object {…}.", ConfigError):
        values = json.loads(content)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}")
    return Annotation(
        label=_joined(name, values, LABEL_NAMES, LABEL_SEPARATOR),
        caption=_joined(name, values, CAPTION_NAMES, CAPTION_SEPARATOR),
    )


def _joined(name: str, values: Mapping[str, Any], keys: tuple[str, ...], separator: str) -> str:
    for key in keys:
        value = values.get(key)
        parts = [part for part in (value if isinstance(value, list) else [value]) if part is not None]
        if wrong := [part for part in parts if isinstance(part, (bool, dict, list))]:
            raise ConfigError(f"{name} has the {key} {wrong[0]!r}; give a text, or a list of texts.")
        if text := separator.join(filter(None, (" ".join(str(part).split()) for part in parts))):
            return text
    return ""


def audio_file(path: Path, file: str, row: Row) -> AudioFile:
    """Return the file of a row of the list ``path``, or its part between ``start_s`` and ``end_s``.

    Raises:
        ConfigError: A cell is not a number of seconds, or the part ends before it starts.
    """
    if not any(row.cells[column] for column in PART_COLUMNS):
        return file
    start_s, end_s = (_seconds(path, row, column) for column in PART_COLUMNS)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ConfigError(
            f"{path}: row {row.number} ends at {end_s:g} s, not after its start at {start_s or 0:g} s."
        )
    return AudioPart(file, start_s or 0.0, end_s)


def _seconds(path: Path, row: Row, column: str) -> float | None:
    text = row.cells[column]
    try:
        seconds = float(text) if text else 0.0
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(
            f"{path}: row {row.number} has the {column} {text!r}; give seconds, 0 or more, or leave it empty."
        )
    return seconds if text else None
