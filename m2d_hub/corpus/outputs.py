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
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from m2d_hub.corpus.formats import ARRAY, FORMATS, INDEX, SETTINGS, TIMES, NpyFolder
from m2d_hub.corpus.parquet import require_pyarrow
from m2d_hub.corpus.records import Fingerprint, Row
from m2d_hub.corpus.sources import Source, _inside, full_name
from m2d_hub.corpus.stored import DATASET_PART, DATASET_SUFFIX, Piece, check_settings, check_suffix, pieces_of
from m2d_hub.corpus.stores import Location, names_in, written
from m2d_hub.errors import ConfigError, first_few
from m2d_hub.io import as_text, lock_output

PART_ROWS, PART_BYTES = 1024, 32 << 20  # of a .dataset's parts
_PART = re.compile(r"\d{8}\.(npz|parquet)")
# Files that killed runs leave, and the index that an earlier release wrote.
_LEFTOVERS = re.compile(r".+\.(npz|parquet)\.partial|_index\.parquet")
_LOCK = ".lock"
_MAX_NAME_BYTES = 255 - len(".partial")


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
        suffix = out.suffix.lower()
        self.is_dataset = suffix == DATASET_SUFFIX
        self._folder: Path | None = None
        if isinstance(out, Path) and not self.is_dataset and (out.is_dir() or suffix not in FORMATS):
            self._folder = out
        self._lock_folder = out.with_name(f"{out.name}.parts")
        self._parts = out if self.is_dataset else self._lock_folder
        self._part_suffix = ".parquet" if self.is_dataset else ".npz"
        if suffix in (".parquet", DATASET_SUFFIX):
            require_pyarrow()
        self._refuse_foreign()
        self._lock = None
        if isinstance(self._lock_folder, Path):  # stores have no locks
            self._lock = lock_output(self._lock_folder / _LOCK, out)
        try:
            for name in filter(_LEFTOVERS.fullmatch, names_in(self._parts)):
                (self._parts / name).unlink()
            done: dict[str, Fingerprint] = {}
            for piece in self._pieces():
                started, fingerprints = piece.entries()
                check_settings(out, started, settings)
                done |= fingerprints
            named, self.left, self.fingerprints = _plan(sources, done)
            numbers = [int(name[:8]) for name in names_in(self._parts) if _PART.fullmatch(name)]
            self._next_part = 1 + max(numbers, default=0)
            self._arrays = self._plan_arrays(self._folder, named, done) if self._folder else {}
        except BaseException:
            self._unlock()
            raise

    def add(self, rows: list[Row]) -> None:
        """Store rows; those of a dataset are collected until they fill a part."""
        self._buffer += [replace(row, fingerprint=self.fingerprints[row.file]) for row in rows]
        num_bytes = sum(row.embedding.nbytes for row in self._buffer)
        if not self.is_dataset or len(self._buffer) >= PART_ROWS or num_bytes >= PART_BYTES:
            self._flush()

    def finish(self, failed: Iterable[str] = ()) -> None:
        """Bring the output into its final form, and check that it has every file except those that failed.

        Raises:
            ConfigError: Rows are missing; what was written is kept.
        """
        self._flush()
        parts = [] if self.is_dataset else self._part_pieces()
        if self.is_dataset:
            self._drop_replaced_rows()
        elif parts:
            self._merge()
        expected = self.fingerprints.keys() - set(failed)
        missing = expected.difference(*(piece.entries()[1] for piece in pieces_of(self.location)))
        if missing:
            raise ConfigError(
                f"{len(missing):,} of {len(expected):,} rows are missing from {self.location} "
                f"({first_few(sorted(missing), 3)}): files were removed while it was written. Run the same "
                "command again."
            )
        for part in parts:
            part.location.unlink()
        self._unlock()

    def release(self) -> None:
        """Close the output, keeping what is done; a later run resumes."""
        try:
            self._flush()
        finally:
            self._unlock()

    def _flush(self) -> None:
        rows, self._buffer = self._buffer, []
        if not rows:
            return
        part = self._parts / f"{self._next_part:08d}{self._part_suffix}"
        self._next_part += 1
        with written(part) as partial:
            FORMATS[self._part_suffix].write(partial, self.settings, rows)

    def _part_pieces(self) -> list[Piece]:
        names = [name for name in names_in(self._parts) if _PART.fullmatch(name)]
        return [Piece(FORMATS[self._part_suffix], self._parts / name) for name in names]

    def _pieces(self) -> list[Piece]:
        """Return the final output, as far as it exists, and then the parts."""
        return [*pieces_of(self.location), *([] if self.is_dataset else self._part_pieces())]

    def _current(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, set[str], bool]]:
        """Yield, for each piece, the files whose rows stay, each once, and whether these are all."""
        seen: set[str] = set()
        for piece in pieces:
            _, stored = piece.entries()
            files = {file for file in stored.keys() - seen if self.fingerprints[file] == stored[file]}
            seen |= files
            yield piece, files, len(files) == len(stored)

    def _merge(self) -> None:
        """Write the final file or folder from the parts and what it contains already."""
        pieces = self._part_pieces() if self._folder else self._pieces()
        rows = (row for piece, files, _ in self._current(pieces) for row in piece.rows() if row.file in files)
        if self._folder is not None:
            NpyFolder().write(self._folder, self.settings, rows, self._arrays)
            return
        final = FORMATS[self.location.suffix.lower()]
        with written(self.location) as partial:
            final.write(partial, self.settings, rows)
            Piece(final, partial).entries()  # raises if it cannot be read back

    def _drop_replaced_rows(self) -> None:
        """Rewrite the parts of a dataset with rows that are in another part, or of a file that changed."""
        for piece, files, is_all in self._current(self._pieces()):
            rows = [] if is_all else [row for row in piece.rows() if row.file in files]
            if rows:
                with written(piece.location) as partial:
                    FORMATS[".parquet"].write(partial, self.settings, rows)
            elif not is_all:
                piece.location.unlink()

    @staticmethod
    def _plan_arrays(folder: Path, named: list[Source], done: Collection[str]) -> dict[str, str]:
        """Return the path of each array in a folder, relative and without suffix, by file."""
        existing = {file: array for file, (array, _) in NpyFolder().index(folder).items()}
        given = {source.file: as_text(source.relative.as_posix()) for source in named}
        from_parts = {file: _inside(file).as_posix() for file in done}
        arrays = from_parts | given | existing
        _refuse_collisions(folder, arrays, done)
        return arrays

    def _refuse_foreign(self) -> None:
        """Refuse to write where something else has written."""
        out, own = self._folder, DATASET_PART if self.is_dataset else _PART
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
        if out is None:
            return
        if out.is_file():
            raise ConfigError(f"{out} is a file; an output without a suffix is a folder.")
        own_files = [SETTINGS] if self._part_pieces() else [SETTINGS, INDEX]  # the index is written last
        is_own = all((out / name).is_file() and not (out / name).is_symlink() for name in own_files)
        if not is_own and names_in(out):
            raise ConfigError(f"{out} contains files that m2d-hub embed did not write; give an empty folder.")

    def _unlock(self) -> None:
        """Release the lock, and remove folders that are empty."""
        if self._lock is not None:
            self._lock.release()
        if isinstance(self._lock_folder, Path):
            (self._lock_folder / _LOCK).unlink(missing_ok=True)
            for folder in {self._lock_folder, self._parts}:
                with contextlib.suppress(OSError):  # it is not empty, or does not exist
                    Path(str(folder)).rmdir()


def _plan(
    sources: Iterable[Source], done: dict[str, Fingerprint]
) -> tuple[list[Source], list[Source], dict[str, Fingerprint]]:
    """Return all files under their names in the output, those to embed, and the fingerprints of all rows."""
    names = {fingerprint.path_hash: file for file, fingerprint in done.items()}
    planned = dict(done)
    named: list[Source] = []
    left: list[Source] = []
    for source in sources:
        fingerprint = Fingerprint.of(source.path)
        name = names.get(fingerprint.path_hash)
        if name is None:
            short = as_text(source.file)
            name = short if short not in planned else full_name(source)
            if name in planned:
                raise ConfigError(f"two files are called {name} in the output; rename one of them.")
        named.append(replace(source, file=name))
        if name not in planned or not (fingerprint.is_missing or planned[name] == fingerprint):
            left.append(named[-1])
            names[fingerprint.path_hash], planned[name] = name, fingerprint
    return named, left, planned


def _refuse_collisions(out: Path, arrays: dict[str, str], done: Collection[str]) -> None:
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
        if file not in done and os.path.lexists(out / (array + ARRAY)):
            raise ConfigError(f"{out / (array + ARRAY)} exists and is not in the index of {out}; {hint}.")
        if not (out / array).parent.resolve().is_relative_to(root):
            raise ConfigError(f"{(out / array).parent} is a link that leads out of {out}; {hint}.")


def _folded(name: str) -> str:
    """Return a name as case-insensitive file systems compare it."""
    return unicodedata.normalize("NFC", name).casefold()
