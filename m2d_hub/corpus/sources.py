"""Which audio files are meant by files, folders, patterns and lists, and how each is named in an output."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from m2d_hub.audio.clips import AUDIO_SUFFIXES
from m2d_hub.audio.stored import StoredFile, identity_of
from m2d_hub.corpus.shards import SHARD_SUFFIX, shard_files
from m2d_hub.corpus.stores import StoreFile, StoreUrl, look_up, place_of
from m2d_hub.corpus.tables import PART_COLUMNS, read_table, refuse_empty
from m2d_hub.errors import ConfigError
from m2d_hub.io import as_text

logger = logging.getLogger(__name__)

_SUFFIXES = AUDIO_SUFFIXES | {SHARD_SUFFIX}

PathOrPaths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Source:
    """An audio file to work on."""

    path: Path | StoredFile
    file: str  # its name in outputs: as given, as the CSV writes it, or as the shard has it
    relative: PurePath  # where an output folder keeps what belongs to it


def find_sources(paths: PathOrPaths) -> list[Source]:
    """Finds the audio files that ``paths`` mean, each once, in the order given; folders are sorted.

    A path that looks like a file but does not exist is kept: reading it will fail, and tell.

    Args:
        paths: One, or several: files, folders (searched through, by suffix), shell-style patterns (``**`` for
            any depth), CSV files with a ``file`` column, relative to the CSV, or tar shards, of which each
            audio file is one. Folders, patterns and CSVs may hold shards. URLs (``s3://bucket/prefix``) are
            files or what is below a prefix.

    Raises:
        ConfigError: A folder, a pattern or a shard holds no audio, or a CSV has no usable ``file`` column.
    """
    found: dict[str, Source] = {}
    names: set[str] = set()
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    for path in given:
        for source in _expand(os.fspath(path)):
            place = identity_of(source.path)
            if place in found:
                continue
            name = next(name for name in possible_names(source) if name not in names)
            names.add(name)
            found[place] = replace(source, file=name)
    if not found:
        raise ConfigError("no audio files were given.")
    return list(found.values())


def _expand(path: str) -> Iterator[Source]:
    if not path:
        raise ConfigError("an empty path was given, perhaps by a variable that is not set; '.' means here.")
    place = place_of(path)
    if isinstance(place, StoreUrl):
        yield from _expand_url(place)
    elif _is_folder(place):
        yield from _walk(place)
    elif place.suffix.lower() == ".csv":
        yield from _listed(place, place)
    elif glob.has_magic(path) and not os.path.lexists(place):
        yield from _match(path)
    else:
        yield from _unpacked(Source(place, as_text(place.as_posix()), _inside(place)), is_named=True)


def _expand_url(url: StoreUrl) -> Iterator[Source]:
    """Objects of a store: one, those below a prefix, or those of a list."""
    file = url.look()
    if file is not None and url.suffix.lower() == ".csv":
        with file.fetched().open() as content:
            yield from _listed(url, content)
        return
    if file is not None:
        yield from _unpacked(Source(file, str(url), PurePosixPath(url.name)), is_named=True)
        return
    below = url.walk()
    if not below and glob.has_magic(url.path):
        raise ConfigError(f"{url}: patterns are not looked for in stores; give the prefix, or a CSV.")
    if not below:
        yield Source(StoreFile(url), str(url), PurePosixPath(url.name))
        return
    audio = [file for file in below if file.url.suffix.lower() in _SUFFIXES]
    if not audio:
        raise ConfigError(f"{url} holds no audio files, at any depth ({' '.join(sorted(AUDIO_SUFFIXES))}).")
    for file in audio:
        yield from _unpacked(Source(file, str(file), PurePosixPath(file.url.path[len(url.path) + 1 :])))


def _unpacked(source: Source, is_named: bool = False) -> Iterator[Source]:
    """The source, or instead of a shard the files in it.

    Raises:
        ConfigError: A shard that was named, not found in a folder, holds no audio.
    """
    shard = source.path
    if not _is_shard(shard):
        yield source
        return
    files = list(shard_files(shard))
    if is_named and not files:
        raise ConfigError(f"shard {shard} holds no audio files ({' '.join(sorted(AUDIO_SUFFIXES))}).")
    for file in files:
        relative = source.relative.with_suffix("") / _inside(PurePosixPath(file.name))
        yield Source(file, as_text(file.name) or source.file, relative)


def _is_shard(place: Path | StoredFile) -> bool:
    if isinstance(place, Path):
        return place.suffix.lower() == SHARD_SUFFIX and os.path.isfile(place) and os.access(place, os.R_OK)
    return str(place).lower().endswith(SHARD_SUFFIX)


def _is_folder(place: Path) -> bool:
    """Whether it is a folder; False, too, where that may not be known: reading it will tell."""
    try:
        return place.is_dir()
    except (OSError, ValueError):
        return False


def _walk(folder: Path) -> Iterator[Source]:
    closed: list[Path] = []
    audio = [path for path in files_below(folder, closed) if path.suffix.lower() in _SUFFIXES]
    if not audio and not closed:
        raise ConfigError(
            f"folder {folder} holds no audio files, at any depth ({' '.join(sorted(AUDIO_SUFFIXES))})."
        )
    for path in sorted(audio + closed):
        yield from _unpacked(Source(path, as_text(path.as_posix()), path.relative_to(folder)))


def files_below(folder: Path, closed: list[Path] | None = None) -> Iterator[Path]:
    """Files in a folder at any depth but hidden ones; links are followed, into each folder once.

    Args:
        folder: Where to begin.
        closed: Takes folders that may not be entered.

    Raises:
        ConfigError: A folder may not be entered, and ``closed`` is None.
    """

    def tell(error: OSError) -> None:
        if closed is None:
            raise ConfigError(
                f"folder {error.filename} cannot be entered ({error.strerror}): change its permissions, or "
                "move it away."
            ) from error
        closed.append(Path(error.filename))

    seen = set()
    for root, folders, files in os.walk(folder, onerror=tell, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, file) for file in files if not file.startswith("."))


def _match(pattern: str) -> Iterator[Source]:
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    suffix = PurePath(pattern).suffix
    any_suffix = bool(suffix) and not glob.has_magic(suffix)
    audio = [
        match for match in matches if match.is_file() and (any_suffix or match.suffix.lower() in _SUFFIXES)
    ]
    if not audio:
        raise ConfigError(f"pattern {pattern!r} matches no audio files.")
    for path in audio:
        yield from _unpacked(Source(path, as_text(path.as_posix()), _inside(path)))


def _listed(table: Path | StoreUrl, content: Path | BinaryIO) -> Iterator[Source]:
    rows = read_table(content, ["file"], PART_COLUMNS, name=table)
    refuse_empty(table, rows, "file")
    if parts := [row for row in rows if any(row.cells[column] for column in PART_COLUMNS)]:
        logger.warning(
            "%s names parts of files in %d rows (start_s, end_s); each file is taken once, as a whole.",
            table,
            len(parts),
        )
    names = [row.cells["file"] for row in rows]
    for name, path in zip(names, _looked_up([_beside(table, name) for name in names]), strict=True):
        given = place_of(name)
        relative = _inside(PurePosixPath(given.name) if isinstance(given, StoreUrl) else given)
        yield from _unpacked(Source(path, name, relative), is_named=True)


def _beside(table: Path | StoreUrl, name: str) -> Path | StoreUrl:
    """What a row of a table names: a URL, or a path relative to the table."""
    place = place_of(name)
    if isinstance(place, StoreUrl):
        return place
    return table.parent.child(name) if isinstance(table, StoreUrl) else table.parent / place


def _looked_up(places: list[Path | StoreUrl]) -> Iterator[Path | StoredFile]:
    """Paths as they are, objects of stores looked up together."""
    files = iter(look_up([place for place in places if isinstance(place, StoreUrl)]))
    for place in places:
        yield next(files) if isinstance(place, StoreUrl) else place


def _inside(path: PurePath) -> PurePath:
    """A path's own part if it stays below where it starts from, else its name alone."""
    return PurePath(path.name) if path.is_absolute() or ".." in path.parts else path


def possible_names(source: Source) -> Iterator[str]:
    """Names that a file may have in an output, the shortest first; the last is no other file's."""
    place = identity_of(source.path)
    yield from (as_text(source.file), as_text(place))
    yield f"{as_text(place)}.{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}"
