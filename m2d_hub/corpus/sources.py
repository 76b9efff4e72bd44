"""Audio files in folders, patterns, lists, tar shards and object stores, and their names in outputs."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath

from m2d_hub.audio.clips import AUDIO_SUFFIXES
from m2d_hub.audio.stored import StoredFile, identity_of
from m2d_hub.corpus.shards import SHARD_SUFFIX, shard_files
from m2d_hub.corpus.stores import Location, StorePath, looked_up, open_location, to_location
from m2d_hub.corpus.tables import PART_COLUMNS, read_table, refuse_empty
from m2d_hub.errors import ConfigError
from m2d_hub.io import as_text

logger = logging.getLogger(__name__)

_SUFFIXES = AUDIO_SUFFIXES | {SHARD_SUFFIX}
_LOOKUPS = 32  # concurrent requests
_ALL_SUFFIXES = " ".join(sorted(AUDIO_SUFFIXES))  # for messages


@dataclass(frozen=True)
class Source:
    """An audio file to embed or tag."""

    path: Path | StoredFile
    file: str  # its name in outputs: as given, as in the CSV, or as in the shard
    relative: PurePath  # path of its array in an output folder, without suffix


PathOrPaths = str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Source]


def find_sources(paths: PathOrPaths) -> list[Source]:
    """Return the audio files that ``paths`` stand for, each once, in the given order; folders are sorted.

    A path that looks like a file but does not exist is kept; reading it fails with an error that names it.

    Args:
        paths: One or several files, folders (searched recursively, by suffix), shell-style patterns (``**``
            for any depth), CSV files with a ``file`` column, relative to the CSV, or tar shards, each of
            whose audio files is one. Folders, patterns and CSVs may contain shards. URLs
            (``s3://bucket/prefix``) stand for an object or all objects below a prefix. Sources are kept.

    Raises:
        ConfigError: A folder, a pattern or a shard contains no audio, a CSV has no usable ``file`` column, or
            two files have the same name.
    """
    found: dict[str, Source] = {}
    names: set[str] = set()
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    for path in given:
        for source in [path] if isinstance(path, Source) else _expand(os.fspath(path)):
            identity = identity_of(source.path)
            if identity in found:
                continue
            name = source.file if source.file not in names else full_name(source)
            if name in names:
                raise ConfigError(f"two files are called {name} in outputs; rename one of them.")
            names.add(name)
            found[identity] = replace(source, file=name)
    if not found:
        raise ConfigError("no audio files were given.")
    return list(found.values())


def _expand(path: str) -> Iterator[Source]:
    if not path:
        raise ConfigError(
            "a path is empty, perhaps because a variable is not set; '.' is the current folder."
        )
    location = looked_up(to_location(path))
    files = _files_in(location)
    if files is not None:
        if not files:
            raise ConfigError(f"folder {location} holds no audio files, at any depth ({_ALL_SUFFIXES}).")
        for file in files:
            yield from _unpacked(file, file.relative_to(location))  # type: ignore[arg-type]
    elif location.suffix.lower() == ".csv":
        yield from _listed(location)
    elif isinstance(location, Path) and glob.has_magic(path) and not os.path.lexists(location):
        yield from _match(path)
    else:
        relative = location.name if isinstance(location, StorePath) else location
        yield from _unpacked(location, relative, is_named=True)


def _files_in(location: Location) -> Sequence[Location] | None:
    """Return audio files and shards in a folder or below a prefix; None if there is no such folder."""
    if isinstance(location, StorePath):
        objects = location.objects() if location.size < 0 else []
        visible = [file for file in objects if "/." not in file.path[len(location.path) :]]
        return [file for file in visible if file.suffix.lower() in _SUFFIXES] if objects else None
    if not os.path.isdir(location):
        return None
    closed: list[Path] = []
    audio = [path for path in files_below(location, closed) if path.suffix.lower() in _SUFFIXES]
    return sorted(audio + closed)


def _unpacked(
    path: Location, relative: str | PurePath, name: str = "", is_named: bool = False
) -> Iterator[Source]:
    """Return a file as a source, or the files in a shard."""
    name = as_text(name or path.as_posix())
    if path.suffix.lower() != SHARD_SUFFIX or not (isinstance(path, StorePath) or os.path.isfile(path)):
        yield Source(path, name, _inside(relative))
        return
    files = list(shard_files(path))
    if is_named and not files:
        raise ConfigError(f"shard {path} holds no audio files ({_ALL_SUFFIXES}).")
    for file in files:
        yield Source(file, as_text(file.name) or name, _inside(relative).with_suffix("") / _inside(file.name))


def files_below(folder: Path, closed: list[Path] | None = None) -> Iterator[Path]:
    """Return the files below a folder, at any depth.

    Hidden files and folders, whose names begin with a dot, are skipped; links are followed, into each folder
    once.

    Args:
        folder: Where to start.
        closed: Receives folders without permission to list.

    Raises:
        ConfigError: A folder cannot be listed, and ``closed`` is None.
    """

    def refuse(error: OSError) -> None:
        if closed is None:
            raise ConfigError(
                f"folder {error.filename} cannot be listed ({error.strerror}); change its permissions, or "
                "move it elsewhere."
            ) from error
        closed.append(Path(error.filename))

    seen = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, file) for file in files if not file.startswith("."))


def _match(pattern: str) -> Iterator[Source]:
    suffix = PurePath(pattern).suffix
    any_suffix = bool(suffix) and not glob.has_magic(suffix)
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    audio = [
        match for match in matches if match.is_file() and (any_suffix or match.suffix.lower() in _SUFFIXES)
    ]
    if not audio:
        raise ConfigError(f"pattern {pattern!r} matches no audio files.")
    for path in audio:
        yield from _unpacked(path, path)


def _listed(table: Location) -> Iterator[Source]:
    with open_location(table, "a CSV with the column file") as content:
        rows = read_table(content, ["file"], PART_COLUMNS, name=table)
    refuse_empty(table, rows, "file")
    if parts := [row for row in rows if any(row.cells[column] for column in PART_COLUMNS)]:
        logger.warning(
            "%s has parts of files in %d rows (start_s, end_s); each file is embedded once, as a whole.",
            table,
            len(parts),
        )
    names = [row.cells["file"] for row in rows]
    places = [to_location(name) for name in names]
    places = [place if isinstance(place, StorePath) else table.parent / place for place in places]
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        for name, place in zip(names, pool.map(looked_up, places), strict=True):
            relative = place.name if isinstance(place, StorePath) else name
            yield from _unpacked(place, relative, name, is_named=True)


def _inside(path: str | PurePath) -> PurePath:
    """Return a path's place in an output folder, in which it stays by the rules of POSIX and Windows."""
    text = os.fspath(path)
    windows = PureWindowsPath(text)
    if windows.anchor or ".." in windows.parts:
        text = windows.name or "audio"
    return PurePath(text.replace(":", "_"))


def full_name(source: Source) -> str:
    """Return the name in outputs of a file whose short name is taken."""
    return as_text(identity_of(source.path))
