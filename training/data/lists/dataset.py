"""Descriptions of public data sets, and what the makers of their lists share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading_file

from ..annotations import standard_split

ALL = "all"  # key of the number of clips in all splits
FILE_COLUMNS = ("file", "file_name")
EVAR_URL = "https://github.com/nttcslab/eval-audio-repr"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListRow:
    """One row of a list to write."""

    file: str  # path, whether or not the file exists
    label: str = ""  # several are joined by ';'; empty: the list has no labels
    split: str = ""  # train, valid, test or a fold's number; empty: the list has no splits
    start_s: float | None = None  # of a part of the file
    end_s: float | None = None


@dataclass(frozen=True)
class Variant:
    """One list of a data set."""

    rows: Callable[[Request], Iterable[ListRow]]
    about: str
    clips: Mapping[str, int] = field(default_factory=dict)  # published, by split, and ALL
    labels: int | None = None  # published; None if not known, or without labels


@dataclass(frozen=True)
class PublicDataset:
    """Source, licence and folder layout of a data set, and its lists."""

    title: str
    source: str  # address
    licence: str
    reference: str  # source of the counts
    layout: str  # of the folder
    variants: Mapping[str, Variant]  # the first is the default
    split: str = ""  # a published file that the user names, and its source


@dataclass(frozen=True)
class Request:
    """Data set, folder and options of a list to make."""

    dataset: PublicDataset
    folder: Path
    split_files: tuple[Path, ...] = ()
    audio: Path | None = None  # folder of the clips, where ``folder`` is a file of metadata

    def find(self, *names: str) -> Path:
        """Return the first of these files or folders that exists in the data set's folder.

        Raises:
            ConfigError: None exists; the message gives the published layout.
        """
        for name in names:
            if (self.folder / name).exists():
                return self.folder / name
        raise self.lacks(names[0])

    def lacks(self, name: str) -> ConfigError:
        """Return the error for a missing file or folder, with the published layout."""
        inner = next((path for path in sorted(self.folder.iterdir()) if (path / name).exists()), None)
        hint = f" {inner} has it; give that folder." if inner else ""
        return ConfigError(
            f"{self.folder} has no {name}.{hint} {self.dataset.title} is expected as published: "
            f"{self.dataset.layout}."
        )

    def split_file(self, name: str) -> Path:
        """Return the published split: the file that the user named, or one in or beside the folder.

        Raises:
            ConfigError: It does not exist; the message gives its source.
        """
        paths = self.split_files or (self.folder / name, self.folder.parent / name)
        for path in paths:
            if path.is_file():
                return path
        raise ConfigError(f"{paths[0]} does not exist. {self._split_hint}")

    @property
    def _split_hint(self) -> str:
        return f"Pass as split_files (--split-file): {self.dataset.split}."

    def read_splits(self, group: str) -> dict[str, str]:
        """Read the split files that the user named.

        They are text files with one path per line, one file each for train, valid and test (and named so), or
        a CSV with the column ``split`` and one that names clips or groups of clips.

        Args:
            group: What clips of one split have in common, and the CSV's column for it.

        Returns:
            The split of each clip or group, by :func:`clip_name`.

        Raises:
            ConfigError: A file is missing or cannot be used; the message gives its source.
        """
        if not self.split_files:
            raise ConfigError(f"{self.dataset.title} has no split of its own. {self._split_hint}")
        splits: dict[str, str] = {}
        for path in self.split_files:
            if not path.is_file():
                raise ConfigError(f"{path} does not exist. {self._split_hint}")
            splits |= (
                _splits_of_table(path, group) if path.suffix.lower() == ".csv" else _splits_of_text(path)
            )
        return splits

    def split_rows(self, clips: Sequence[tuple[ListRow, str]], group: str) -> Iterator[ListRow]:
        """Assign clips to the splits that the user named, and skip clips without a split, with a warning.

        Args:
            clips: Each with its group; at least one.
            group: As for :meth:`read_splits`.

        Raises:
            ConfigError: No clip has a split.
        """
        splits, found, name = self.read_splits(group), 0, ""
        for row, member_of in clips:
            name = clip_name(Path(row.file).relative_to(self.folder).as_posix())
            keys = (name, member_of, name.rpartition("/")[2])
            if split := next((splits[key] for key in keys if key in splits), ""):
                found += 1
                yield replace(row, split=split)
        if not found:
            raise ConfigError(
                f"The split names none of the {len(clips):,} clips of {self.folder}; it has "
                f"{next(iter(splits), '')!r}, the folder {name!r} of {member_of!r}."
            )
        if found < len(clips):
            logger.warning("%d of %d clips have no split and are skipped", len(clips) - found, len(clips))


def clip_name(path: str) -> str:
    """Return a clip's name in a split: its path with slashes, without an audio suffix."""
    pure = PurePosixPath(path.strip().replace("\\", "/"))
    return str(pure.with_suffix("") if pure.suffix.lower() in AUDIO_SUFFIXES else pure)


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Return the stripped lines of a text file that are not blank, each with its number.

    Raises:
        ConfigError: The file is not text in UTF-8.
    """
    with reading_file(path, "text in UTF-8", "Download it again from its publisher.", ConfigError):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _splits_of_text(path: Path) -> dict[str, str]:
    split = standard_split(path.stem.partition("_")[0])
    if split is None:
        raise ConfigError(f"{path} has an unknown split; its name must begin with train_, valid_ or test_.")
    return {clip_name(line): split for _, line in text_lines(path)}


def _splits_of_table(path: Path, group: str) -> dict[str, str]:
    splits = {}
    for row in read_table(path, ["split"], [group, *FILE_COLUMNS]):
        name = next((row.cells[column] for column in (group, *FILE_COLUMNS) if row.cells[column]), "")
        split = standard_split(row.cells["split"])
        if not name or split is None:
            raise ConfigError(
                f"{path}: row {row.number} has the {group} {name!r} and the split {row.cells['split']!r}; "
                f"required are one of the columns {group}, file and file_name, and as split train, valid, "
                "test or a number."
            )
        splits[clip_name(name)] = split
    return splits
