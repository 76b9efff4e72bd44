"""What is known about a public data set, and what a maker of its list is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading_file

ALL = "all"  # key of the number of clips in all splits


@dataclass(frozen=True, slots=True)
class ListRow:
    """One row of a list to be."""

    file: str  # path, whether or not the file is there
    label: str = ""  # several are joined by ';'; empty: the list has no labels
    split: str = ""  # train, valid, test or a fold's number; empty: the list has no splits
    start_s: float | None = None  # of a part of the file
    end_s: float | None = None


@dataclass(frozen=True)
class Variant:
    """One list that can be made of a data set."""

    rows: Callable[[Request], Iterable[ListRow]]
    about: str
    clips: Mapping[str, int] = field(default_factory=dict)  # published, by split, and ALL
    labels: int | None = None  # published; None: not known, or without labels


@dataclass(frozen=True)
class PublicDataset:
    """Where a data set is to be had, how its folder looks, and the lists that are made of it."""

    title: str
    source: str  # address
    licence: str
    reference: str  # says the counts
    layout: str  # of the folder
    variants: Mapping[str, Variant]  # the first is made unless another one is asked for
    split: str = ""  # a published file that the user names, and where it is to be had


@dataclass(frozen=True)
class Request:
    """What a maker works on."""

    dataset: PublicDataset
    folder: Path
    split_files: tuple[Path, ...] = ()
    audio: Path | None = None  # folder of the clips, where ``folder`` is a file of metadata

    def find(self, *names: str) -> Path:
        """The first of these files or folders that the data set's folder holds.

        Raises:
            ConfigError: There is none; the message tells the published layout.
        """
        for name in names:
            if (self.folder / name).exists():
                return self.folder / name
        raise self.lacks(names[0])

    def lacks(self, name: str) -> ConfigError:
        """Says that the folder lacks a file or folder, and what the published layout is."""
        inner = next((path for path in sorted(self.folder.iterdir()) if (path / name).exists()), None)
        hint = f" {inner} has it: give that folder." if inner else ""
        return ConfigError(
            f"{self.folder} has no {name}.{hint} {self.dataset.title} is expected as published: "
            f"{self.dataset.layout}."
        )

    def split_file(self, name: str) -> Path:
        """The published split: the file that the user named, or one of this name in or beside the folder.

        Raises:
            ConfigError: There is none; the message tells where it is to be had.
        """
        places = self.split_files or (self.folder / name, self.folder.parent / name)
        for path in places:
            if path.is_file():
                return path
        raise ConfigError(f"{places[0]} does not exist. Name by split_files {self.dataset.split}.")


def audio_below(folder: Path) -> list[Path]:
    """All audio files in a folder and those below it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Lines of a text file that are not blank, without spaces around, each with its number.

    Raises:
        ConfigError: The file is no text in UTF-8.
    """
    with reading_file(path, "text in UTF-8", "Fetch it again from its publisher.", ConfigError):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
