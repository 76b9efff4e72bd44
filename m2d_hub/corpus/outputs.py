"""The writer of all outputs: rows go to part files, which are merged at the end, and a later run resumes.

A finished batch is a part in the folder ``OUT.parts``, whatever the format of OUT; the parts of a
``.dataset`` are Parquet files in OUT itself and stay as they are. Each file is complete or absent. Files that
this package did not write are neither changed nor removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from m2d_hub.corpus.formats import ARRAY, FORMATS, INDEX, SETTINGS, TIMES, Format, NpyFolder, Safetensors
from m2d_hub.corpus.parquet import Parquet
from m2d_hub.corpus.records import Entries, Fingerprint, Row
from m2d_hub.corpus.sources import Source, _inside, full_name
from m2d_hub.corpus.stored import DATASET_PART, DATASET_SUFFIX, Piece, check_settings, check_suffix, pieces_of
from m2d_hub.corpus.stores import Location, StoreUrl, names_in, remove, written
from m2d_hub.errors import ConfigError, first_few
from m2d_hub.io import as_text, lock_output

PART_ROWS, PART_BYTES = 1024, 32 << 20  # of a .dataset's parts
_PART = re.compile(r"\d{8}\.(safetensors|parquet)")
# Files that killed runs leave, and the index that an earlier release wrote.
_LEFTOVERS = re.compile(rf"({_PART.pattern})\.partial|.+\.parquet\.partial|_index\.parquet")
_LOCK = ".lock"
_MAX_NAME_BYTES = 255 - len(".partial")


@dataclass(frozen=True)
class _Kept:
    """Rows of a piece that stay in the output."""

    piece: Piece
    part: dict[str, Fingerprint]  # of these files
    is_all: bool  # whether these are all rows of the piece


class Output:
    """A place for rows that knows which files it has; used by one run at a time."""

    def __init__(self, out: Location, settings: dict[str, Any], sources: Iterable[Source]):
        """Open an output, new or started by an earlier run.

        Args:
            out: Its suffix selects the format; none is a folder.
            settings: How the embeddings are computed; an output that was started with others is refused.
            sources: The files to embed.

        Raises:
            ConfigError: The suffix is unknown, the output belongs to another job or was written by something
                else, two files would have the same name, or another run is writing it.
        """
        check_suffix(out)
        self.location, self.settings, self._buffer = out, settings, list[Row]()
        self.is_dataset = out.suffix.lower() == DATASET_SUFFIX
        self._lock_folder = out.with_name(f"{out.name}.parts")
        self._parts = out if self.is_dataset else self._lock_folder
        self._part_suffix = ".parquet" if self.is_dataset or isinstance(out, StoreUrl) else ".safetensors"
        self._refuse_foreign()
        self._lock = None
        if isinstance(self._lock_folder, Path):  # stores have no locks
            self._lock = lock_output(self._lock_folder / _LOCK, out)
        try:
            for name in filter(_LEFTOVERS.fullmatch, names_in(self._parts)):
                remove(self._parts / name)
            done: dict[str, Fingerprint] = {}
            for piece in self._pieces():
                entries = _entries(piece)
                check_settings(out, entries.settings, settings)
                done |= entries.fingerprints
            self.left, self.fingerprints = _plan(sources, done)
            numbers = [int(name[:8]) for name in names_in(self._parts) if _PART.fullmatch(name)]
            self._next_part = 1 + max(numbers, default=0)
            self._format = self._choose_format()
            if isinstance(self._format, (Parquet, Safetensors)):
                self._format.require(out.name, list(self.fingerprints), settings["kind"])
        except BaseException:
            self._unlock()
            raise

    def add(self, rows: list[Row]) -> None:
        """Store rows; those of a dataset are collected until they fill a part."""
        self._buffer += rows
        num_bytes = sum(row.embedding.nbytes for row in self._buffer)
        if not self.is_dataset or len(self._buffer) >= PART_ROWS or num_bytes >= PART_BYTES:
            self._flush()

    def finish(self, failed: Iterable[str] = ()) -> None:
        """Bring the output into its final form, and check that it has every file except those that failed.

        Raises:
            ConfigError: Rows are missing; what was written is kept.
        """
        self._flush()
        if self.is_dataset:
            self._drop_replaced_rows()
        elif self._part_names():
            self._merge()
        expected = self.fingerprints.keys() - set(failed)
        missing = expected.difference(*(_entries(piece).fingerprints for piece in pieces_of(self.location)))
        if missing:
            raise ConfigError(
                f"{len(missing):,} of {len(expected):,} rows are missing from {self.location} "
                f"({first_few(sorted(missing), 3)}): files were removed while it was written. Run the same "
                "command again."
            )
        if not self.is_dataset:
            for name in self._part_names():
                remove(self._parts / name)
        self._unlock()

    def release(self) -> None:
        """Close the output, keeping what is done; a later run resumes."""
        try:
            self._flush()
        finally:
            self._unlock()

    def _part_names(self) -> list[str]:
        pattern = DATASET_PART if self.is_dataset else _PART
        return [name for name in names_in(self._parts) if pattern.fullmatch(name)]

    def _pieces(self) -> list[Piece]:
        """Return the final output, as far as it exists, and then the parts."""
        if self.is_dataset:
            return pieces_of(self.location)
        part_format = FORMATS[self._part_suffix]
        parts = [Piece(part_format, self._parts / name) for name in self._part_names()]
        return [*pieces_of(self.location), *parts]

    def _choose_format(self) -> Format:
        suffix = ".parquet" if self.is_dataset else self.location.suffix.lower()
        if isinstance(self.location, StoreUrl) or self.is_dataset:
            return FORMATS[suffix]
        if suffix in FORMATS and not self.location.is_dir():
            return FORMATS[suffix]
        existing = NpyFolder().arrays(self.location) if (self.location / INDEX).exists() else {}
        planned = {source.file: as_text(source.relative.as_posix()) for source in self.left}
        from_parts = {file: _inside(file).as_posix() for file in self.fingerprints}
        arrays = from_parts | planned | existing
        _refuse_collisions(self.location, {file: arrays[file] for file in self.fingerprints}, existing)
        return NpyFolder(arrays)

    def _flush(self) -> None:
        rows, self._buffer = self._buffer, []
        if not rows:
            return
        part = f"{self._next_part:08d}"
        self._next_part += 1
        entries = Entries(self.settings, {row.file: self.fingerprints[row.file] for row in rows})
        with written(self._parts / (part + self._part_suffix)) as partial:
            FORMATS[self._part_suffix].write(partial, entries, rows)

    def _kept(self) -> list[_Kept]:
        """Return what to take from each piece: each file once, and none that was embedded again since."""
        seen: set[str] = set()
        kept = []
        for piece in self._pieces():
            entries = _entries(piece).fingerprints
            part = {
                file: fingerprint
                for file, fingerprint in entries.items()
                if file not in seen and self.fingerprints.get(file, fingerprint) == fingerprint
            }
            seen |= part.keys()
            kept.append(_Kept(piece, part, is_all=len(part) == len(entries)))
        return kept

    def _merge(self) -> None:
        """Write the final file or folder from the parts and what it contains already."""
        kept = self._kept()
        merged = Entries(self.settings, {file: value for each in kept for file, value in each.part.items()})
        if isinstance(self._format, NpyFolder) and isinstance(self.location, Path):
            new = [each for each in kept if each.piece.location != self.location]
            self._format.write(self.location, merged, _rows_of(new))
            return
        with written(self.location) as partial:
            self._format.write(partial, merged, _rows_of(kept))
            if Piece(self._format, partial).entries() != merged:
                raise ConfigError(
                    f"{self.location} cannot be read back as it was written; its parts are kept."
                )

    def _drop_replaced_rows(self) -> None:
        """Rewrite the parts of a dataset with rows that are in another part, or of a file that changed."""
        for kept in self._kept():
            if kept.is_all:
                continue
            if not kept.part:
                remove(kept.piece.location)
                continue
            with written(kept.piece.location) as partial:
                kept.piece.format.write(partial, Entries(self.settings, kept.part), _rows_of([kept]))

    def _refuse_foreign(self) -> None:
        """Refuse to write where something else has written."""
        out, own = self.location, DATASET_PART if self.is_dataset else _PART
        folders = {self._lock_folder: _PART, self._parts: own}
        for folder, pattern in folders.items():
            if isinstance(folder, Path) and (folder.is_symlink() or folder.is_file()):
                raise ConfigError(f"{folder} is a link or a file; move it elsewhere, or give another output.")
            for name in names_in(folder):
                if not (pattern.fullmatch(name) or _LEFTOVERS.fullmatch(name) or name == _LOCK):
                    raise ConfigError(
                        f"{folder} contains {name!r}, which m2d-hub embed did not write; move it elsewhere, "
                        "or give another output."
                    )
        if isinstance(out, StoreUrl) or self.is_dataset:
            return
        if out.is_file() and out.suffix.lower() not in FORMATS:
            raise ConfigError(f"{out} is a file; an output without a suffix is a folder.")
        if out.is_dir():
            is_own = all(
                (out / name).is_file() and not (out / name).is_symlink() for name in (INDEX, SETTINGS)
            )
            if not is_own and names_in(out):
                raise ConfigError(
                    f"{out} contains files that m2d-hub embed did not write; give an empty folder."
                )

    def _unlock(self) -> None:
        """Release the lock, and remove folders that are empty."""
        if self._lock is not None:
            self._lock.release()
        if isinstance(self._lock_folder, Path):
            remove(self._lock_folder / _LOCK)
            for folder in {self._lock_folder, self._parts}:
                with contextlib.suppress(OSError):  # it is not empty, or does not exist
                    Path(str(folder)).rmdir()


def _entries(piece: Piece) -> Entries:
    """Return entries of a piece, without those whose array is missing in an unfinished folder."""
    entries = piece.entries()
    if not isinstance(piece.format, NpyFolder) or not isinstance(piece.location, Path):
        return entries
    arrays = piece.format.arrays(piece.location)
    finished = {
        file: value
        for file, value in entries.fingerprints.items()
        if os.path.exists(piece.location / (arrays[file] + ARRAY))
    }
    return Entries(entries.settings, finished)


def _rows_of(kept: Iterable[_Kept]) -> Iterator[Row]:
    for each in kept:
        if each.part:
            yield from (row for row in each.piece.rows() if row.file in each.part)


def _plan(
    sources: Iterable[Source], done: dict[str, Fingerprint]
) -> tuple[list[Source], dict[str, Fingerprint]]:
    """Return the files to embed, under their names in the output, and the fingerprints of all rows to be."""
    names = {fingerprint.path_hash: file for file, fingerprint in done.items()}
    planned = dict(done)
    left: list[Source] = []
    for source in sources:
        fingerprint = Fingerprint.of(source.path)
        name = names.get(fingerprint.path_hash)
        if name is not None and (fingerprint.is_missing or planned[name] == fingerprint):
            continue
        if name is None:
            short = as_text(source.file)
            name = short if short not in planned else full_name(source)
            if name in planned:
                raise ConfigError(f"two files are called {name} in the output; rename one of them.")
        names[fingerprint.path_hash], planned[name] = name, fingerprint
        left.append(replace(source, file=name))
    return left, planned


def _refuse_collisions(out: Path, arrays: dict[str, str], existing: dict[str, str]) -> None:
    """Refuse arrays that would overwrite each other, on any file system, or something else in the folder."""
    hint = "use an output that ends in .parquet, .npz or .safetensors, or another folder"
    taken = {INDEX: "the index", SETTINGS: "the settings"}
    for file, array in arrays.items():
        for name in (array + ARRAY, array + TIMES):
            if (other := taken.setdefault(_folded(name), file)) != file:
                raise ConfigError(f"{file} and {other} have the same path in {out}, {name}; {hint}.")
            if any(len(part.encode()) > _MAX_NAME_BYTES for part in PurePosixPath(name).parts):
                raise ConfigError(f"the name of {file} is too long for an array in {out}; {hint}.")
    root = out.resolve()
    for file, array in arrays.items():
        parents = [_folded(str(parent)) for parent in PurePosixPath(array).parents]
        if above := [taken[parent] for parent in parents if parent in taken]:
            raise ConfigError(f"{file} and {above[0]} have the same path in {out}, {array}; {hint}.")
        if file not in existing and os.path.lexists(out / (array + ARRAY)):
            raise ConfigError(f"{out / (array + ARRAY)} exists and is not in the index of {out}; {hint}.")
        if not (out / array).parent.resolve().is_relative_to(root):
            raise ConfigError(f"{(out / array).parent} is a link that leads out of {out}; {hint}.")


def _folded(name: str) -> str:
    """Return a name as case-insensitive file systems compare it."""
    return unicodedata.normalize("NFC", name).casefold()
