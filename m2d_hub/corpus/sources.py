"""Which audio files are meant by files, folders, patterns and lists, and how each is named in an output."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from m2d_hub.audio.clips import AUDIO_SUFFIXES
from m2d_hub.corpus.tables import read_table, refuse_empty
from m2d_hub.errors import ConfigError

PathOrPaths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Source:
    """An audio file to work on."""

    path: Path
    file: str  # its name in outputs: as given, or as the CSV writes it
    relative: PurePath  # where an output folder keeps what belongs to it


def find_sources(paths: PathOrPaths) -> list[Source]:
    """Finds the audio files that ``paths`` mean, each once, in the order given; folders are sorted.

    A path that looks like a file but does not exist is kept: reading it will fail, and tell.

    Args:
        paths: One, or several: files, folders (searched through, by suffix), shell-style patterns (``**`` for
            any depth), or CSV files with a ``file`` column, relative to the CSV.

    Raises:
        ConfigError: A folder or a pattern holds no audio, or a CSV has no usable ``file`` column.
    """
    found: dict[str, Source] = {}
    names: dict[str, str] = {}
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    for path in given:
        for source in _expand(os.fspath(path)):
            place = os.path.abspath(source.path)
            if place in found:
                continue
            if source.file in names:
                source = Source(source.path, _text(place), source.relative)
            names[source.file] = place
            found[place] = source
    if not found:
        raise ConfigError("no audio files were given.")
    return list(found.values())


def output_names(sources: Iterable[Source], taken: dict[str, str]) -> dict[str, str]:
    """Relative output paths that keep the sources' own and never collide, whatever the letter case.

    Args:
        sources: The files.
        taken: Output path by ``file`` of an earlier run; these are kept.

    Returns:
        Output path without suffix, by ``file``.
    """
    names = dict(taken)
    used = {name.casefold() for name in taken.values()}
    for source in sources:
        if source.file in names:
            continue
        name = _text(source.relative.as_posix())
        if name.casefold() in used:
            name = f"{name}.{hashlib.sha256(source.file.encode()).hexdigest()[:12]}"
        names[source.file] = name
        used.add(name.casefold())
    return names


def _expand(path: str) -> Iterator[Source]:
    place = Path(path)
    if place.is_dir():
        yield from _walk(place)
    elif place.suffix.lower() == ".csv":
        yield from _listed(place)
    elif not place.exists() and glob.has_magic(path):
        yield from _match(path)
    else:
        yield Source(place, _text(place.as_posix()), _inside(place))


def _walk(folder: Path) -> Iterator[Source]:
    audio = sorted(path for path in files_below(folder) if path.suffix.lower() in AUDIO_SUFFIXES)
    if not audio:
        raise ConfigError(
            f"folder {folder} holds no audio files, at any depth ({' '.join(sorted(AUDIO_SUFFIXES))})."
        )
    for path in audio:
        yield Source(path, _text(path.as_posix()), path.relative_to(folder))


def files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder at any depth but hidden ones; links are followed, into each folder once."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (Path(root, file) for file in files if not file.startswith("."))


def _match(pattern: str) -> Iterator[Source]:
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    suffix = PurePath(pattern).suffix
    any_suffix = bool(suffix) and not glob.has_magic(suffix)
    audio = [
        match
        for match in matches
        if match.is_file() and (any_suffix or match.suffix.lower() in AUDIO_SUFFIXES)
    ]
    if not audio:
        raise ConfigError(f"pattern {pattern!r} matches no audio files.")
    for path in audio:
        yield Source(path, _text(path.as_posix()), _inside(path))


def _listed(table: Path) -> Iterator[Source]:
    rows = read_table(table, ["file"])
    refuse_empty(table, rows, "file")
    for row in rows:
        path = PurePath(row.cells["file"])
        yield Source(table.parent / path, row.cells["file"], _inside(path))


def _inside(path: PurePath) -> PurePath:
    """A path's own part if it stays below where it starts from, else its name alone."""
    return PurePath(path.name) if path.is_absolute() or ".." in path.parts else path


def _text(path: str) -> str:
    """The path as valid UTF-8, for outputs that hold nothing else."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
