"""Clips of a list: one entry per clip, and the bytes that it refers to."""

from __future__ import annotations

import io
import itertools
import math
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, overload

import numpy as np

from m2d_hub.audio import AudioPart
from m2d_hub.errors import AudioError
from m2d_hub.io import open_file, reading

from .annotations import CAPTION_SEPARATOR, AudioFile, split_labels

NUMBER_KINDS = "fiu"  # kinds of dtype: floats, signed and unsigned integers
TEXT_FIELDS = ("name", "label", "caption", "features_path")
NUMBER_FIELDS = ("offset", "size", "features_offset", "features_size", "row")


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip: a file, a part of a file, or a member of a tar shard."""

    path: AudioFile
    offset: int = 0  # bytes, of a member's data
    size: int = 0  # bytes of a member
    name: str = ""  # of a member; empty for a file
    label: str = ""  # several are joined by ';'; empty if unknown
    caption: str = ""  # several are separate lines
    features_path: str = ""  # .npy file, or shard, of precomputed features
    features_offset: int = 0
    features_size: int = 0
    row: int = 0  # of a CSV as a spreadsheet shows it; else the position, from 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The single labels."""
        return split_labels(self.label)

    def drawn_caption(self, share: float) -> str:
        """Return one of the captions by a number from 0 to below 1; without captions, the labels."""
        captions = [line.strip() for line in self.caption.split(CAPTION_SEPARATOR) if line.strip()]
        return captions[int(share * len(captions))] if captions else ", ".join(self.labels)

    @property
    def features(self) -> Entry:
        """The precomputed features as an entry."""
        return Entry(self.features_path, self.features_offset, self.features_size, self.name)

    def source(self) -> AudioFile | BinaryIO:
        """Return what audio readers open: a path, or a member's bytes as a named file.

        Raises:
            AudioError: The shard cannot be read.
        """
        return MemberFile(self) if self.name else self.path

    def open(self) -> BinaryIO:
        """Open the bytes of the clip.

        Raises:
            AudioError: The file does not exist or cannot be opened.
        """
        return MemberFile(self) if self.name else open_file(self.path, "a clip", AudioError)

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)


class MemberFile(io.BytesIO):
    """A member of a tar shard in memory."""

    def __init__(self, entry: Entry):
        with (
            open_file(entry.path, "a tar shard", AudioError) as shard,
            reading(entry, "a clip", "Write the shard again.", AudioError),
        ):
            if not 0 <= entry.offset <= shard.seek(0, os.SEEK_END) - entry.size:  # before memory is allocated
                raise EOFError("the shard ends before it")
            shard.seek(entry.offset)
            content = shard.read(entry.size)
        super().__init__(content)
        self.name = str(entry)


def read_array(entry: Entry) -> np.ndarray:
    """Read a non-empty array of floats or integers from ``.npy``; that of a file is memory-mapped.

    Raises:
        AudioError: The data is not such an array, or shorter than its header says.
    """
    with reading(entry, "an array", "Write it with numpy.save.", AudioError), entry.open() as file:
        if entry.name:
            values = _parsed_array(file.read())
        else:
            values = np.lib.format.open_memmap(str(entry.path), mode="r")
    if values.dtype.kind not in NUMBER_KINDS or not values.size:
        raise AudioError(
            f"{entry} holds {values.dtype} of shape {values.shape}, expected one or more floats or integers."
        )
    return values


def _parsed_array(content: bytes) -> np.ndarray:
    """Return the array of a ``.npy``, whose header may claim any size: nothing is allocated."""
    file = io.BytesIO(content)
    is_first = np.lib.format.read_magic(file) == (1, 0)
    shape, is_fortran, dtype = (
        np.lib.format.read_array_header_1_0(file) if is_first else np.lib.format.read_array_header_2_0(file)
    )
    values = np.frombuffer(content, dtype, count=math.prod(shape), offset=file.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")


def read_finite(entry: Entry, part: np.ndarray) -> np.ndarray:
    """Copy a part of an entry's array into memory as float32.

    Raises:
        AudioError: The part holds values that are not finite.
    """
    with np.errstate(over="ignore"):
        values = np.array(part, dtype=np.float32)
    if not np.isfinite(values).all():
        raise AudioError(f"{entry} holds non-finite values.")
    return values


class _Texts:
    """A column of texts, each distinct text stored once."""

    def __init__(self, texts: Iterable[str]):
        codes: dict[str, int] = {}
        self._codes = array("q", (codes.setdefault(text, len(codes)) for text in texts))
        encoded = [text.encode("utf-8", "surrogateescape") for text in codes]
        self._bounds = array("q", itertools.accumulate(map(len, encoded), initial=0))
        self._bytes = b"".join(encoded)

    def __getitem__(self, index: int) -> str:
        code = self._codes[index]
        return self._bytes[self._bounds[code] : self._bounds[code + 1]].decode("utf-8", "surrogateescape")


class PackedEntries(Sequence[Entry]):
    """Immutable entries in packed columns, which worker processes share.

    A list of objects is copied page by page into each process that reads it, since Python counts references
    inside the objects; arrays and one text per column are not.
    """

    def __init__(self, entries: Sequence[Entry]):
        files = [e.path if isinstance(e.path, AudioPart) else AudioPart(e.path, math.nan) for e in entries]
        self._paths = _Texts(file.path for file in files)
        self._starts = array("d", (file.start_s for file in files))  # NaN for a whole file
        self._ends = array("d", (math.nan if file.end_s is None else file.end_s for file in files))
        self._texts = [_Texts(getattr(entry, name) for entry in entries) for name in TEXT_FIELDS]
        self._numbers = [array("q", (getattr(entry, name) for entry in entries)) for name in NUMBER_FIELDS]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        path, start_s, end_s = self._paths[index], self._starts[index], self._ends[index]
        part = AudioPart(path, start_s, None if math.isnan(end_s) else end_s)
        name, label, caption, features_path = (column[index] for column in self._texts)
        offset, size, features_offset, features_size, row = (column[index] for column in self._numbers)
        file = path if math.isnan(start_s) else part
        return Entry(
            file, offset, size, name, label, caption, features_path, features_offset, features_size, row
        )
