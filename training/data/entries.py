"""Clips of a list in packed columns, so that processes which read them share one copy.

A list of objects is copied page by page into each process that only looks at it, as Python counts references
inside the objects; arrays and one text for a column are not.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from m2d_hub.audio import AudioPart

from .entry import Entry

TEXTS = ("name", "label", "caption", "features_path")
NUMBERS = ("offset", "size", "features_offset", "features_size", "row")


class _Texts:
    """A column of texts, each different one stored once."""

    def __init__(self, texts: Iterable[str]):
        places: dict[str, int] = {}
        self._codes = array("q", (places.setdefault(text, len(places)) for text in texts))
        encoded = [text.encode("utf-8", "surrogateescape") for text in places]
        self._bounds = array("q", itertools.accumulate(map(len, encoded), initial=0))
        self._bytes = b"".join(encoded)

    def __getitem__(self, index: int) -> str:
        code = self._codes[index]
        return self._bytes[self._bounds[code] : self._bounds[code + 1]].decode("utf-8", "surrogateescape")


class PackedEntries(Sequence[Entry]):
    """Clips that cannot change."""

    def __init__(self, entries: Sequence[Entry]):
        files = [e.path if isinstance(e.path, AudioPart) else AudioPart(e.path, math.nan) for e in entries]
        self._paths = _Texts(file.path for file in files)
        self._starts = array("d", (file.start_s for file in files))  # NaN: the file as a whole
        self._ends = array("d", (math.nan if file.end_s is None else file.end_s for file in files))
        self._texts = [_Texts(getattr(entry, name) for entry in entries) for name in TEXTS]
        self._numbers = [array("q", (getattr(entry, name) for entry in entries)) for name in NUMBERS]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        path, start_s, end_s = self._paths[index], self._starts[index], self._ends[index]
        part = AudioPart(path, start_s, None if math.isnan(end_s) else end_s)
        name, label, caption, features_path = (column[index] for column in self._texts)
        offset, size, features_offset, features_size, row = (column[index] for column in self._numbers)
        file = path if math.isnan(start_s) else part
        return Entry(
            file, offset, size, name, label, caption, features_path, features_offset, features_size, row
        )
