"""One clip of a list, and the bytes that it stands for: a file's own, or those of a member of a tar shard."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO

from m2d_hub.errors import AudioError
from m2d_hub.io import open_file, reading

from .parts import AudioFile

LABEL_SEPARATOR = ";"


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip: a file of its own, a part of one, or a member of a tar shard."""

    path: AudioFile
    offset: int = 0  # bytes, of a member's data
    size: int = 0  # bytes of a member
    name: str = ""  # of a member; empty: a file of its own
    label: str = ""  # several are joined by ';'; empty: not known
    caption: str = ""
    features_path: str = ""  # .npy file, or shard, of per-frame features computed beforehand
    features_offset: int = 0
    features_size: int = 0
    row: int = 0  # of a CSV as a spreadsheet shows it; else the place, from 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The single labels."""
        return tuple(part.strip() for part in self.label.split(LABEL_SEPARATOR) if part.strip())

    @property
    def features(self) -> Entry:
        """Where the features that were computed beforehand are."""
        return Entry(self.features_path, self.features_offset, self.features_size, self.name)

    def source(self) -> AudioFile | MemberFile:
        """What readers open: a path, or a member's bytes as a file with a name.

        Raises:
            AudioError: The shard cannot be read.
        """
        return MemberFile(self) if self.name else self.path

    def open(self) -> BinaryIO:
        """The bytes that the clip stands for.

        Raises:
            AudioError: There is no such file, or it cannot be opened.
        """
        if self.name:
            return MemberFile(self)
        return open_file(self.path, "a clip", AudioError)

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)


class MemberFile(io.BytesIO):
    """A member of a tar shard in memory."""

    def __init__(self, entry: Entry):
        with (
            open_file(entry.path, "a tar shard", AudioError) as shard,
            reading(entry, "a clip", "Make the shard again.", AudioError),
        ):
            shard.seek(entry.offset)
            content = shard.read(entry.size)
            if len(content) < entry.size:
                raise EOFError("the shard ends before it")
        super().__init__(content)
        self.name = str(entry)
