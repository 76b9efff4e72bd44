"""What is written down about a clip: labels and a caption, in columns of a list or in files of a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m2d_hub.errors import ConfigError
from m2d_hub.io import reading

from .entry import LABEL_SEPARATOR

LABEL_NAMES = ("label", "labels")  # of columns, and of values in a .json; the first that is filled counts
CAPTION_NAMES = ("caption", "captions", "text")
MAX_BYTES = 1 << 20  # of one file


@dataclass(frozen=True)
class Note:
    """Labels and caption of a clip, as far as they are known."""

    label: str = ""  # several are joined by ';'
    caption: str = ""

    def __or__(self, other: Note) -> Note:
        """This note, with what it lacks from another."""
        return Note(self.label or other.label, self.caption or other.caption)


def note_of_cells(cells: Mapping[str, str]) -> Note:
    """Labels and caption of a list's row."""
    return Note(*(next((cells[n] for n in names if cells[n]), "") for names in (LABEL_NAMES, CAPTION_NAMES)))


def read_note(name: str, content: bytes) -> Note:
    """Labels and caption of a ``.json``, or the caption that a ``.txt`` is.

    A value may be a text, a number, or a list of these; null is unknown.

    Args:
        name: Of the file, for messages.
        content: Its bytes.

    Raises:
        ConfigError: The file is no UTF-8, no JSON object, or holds values of other types.
    """
    if name.lower().endswith(".txt"):
        with reading(name, "text", "Save it in UTF-8.", ConfigError):
            return Note(caption=content.decode("utf-8-sig").strip())
    with reading(name, "labels and a caption", "Write a JSON object {…}.", ConfigError):
        values = json.loads(content)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}")
    return Note(
        label=_joined(name, values, LABEL_NAMES, LABEL_SEPARATOR),
        caption=_joined(name, values, CAPTION_NAMES, ", "),
    )


def _joined(name: str, values: Mapping[str, Any], names: tuple[str, ...], separator: str) -> str:
    for key in names:
        value = values.get(key)
        parts = [part for part in (value if isinstance(value, list) else [value]) if part is not None]
        if wrong := [part for part in parts if isinstance(part, (bool, dict, list))]:
            raise ConfigError(f"{name} has the {key} {wrong[0]!r}: give a text, or a list of texts.")
        if text := separator.join(filter(None, (str(part).strip() for part in parts))):
            return text
    return ""
