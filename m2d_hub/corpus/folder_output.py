"""A folder of ``.npy`` files; ``index.csv`` says which belongs to which audio file.

Each array takes its name when it is whole, and then a line in the index. ``.pending`` names the arrays of the
batch in work, so that a later run knows those that a killed one left without a line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.dataset_output import PartWriter
from m2d_hub.corpus.naming import ARRAY, TIMES, FolderNames, plan
from m2d_hub.corpus.output_job import LOCK, check_settings, lock_kept, write_settings
from m2d_hub.corpus.records import WAY_OUT, Contents, Origin, Record, checked, parse_settings, reading_output
from m2d_hub.corpus.sources import Source
from m2d_hub.errors import ConfigError
from m2d_hub.io import replacing

INDEX, SETTINGS, PENDING = "index.csv", "settings.json", ".pending"
_COLUMNS = ["file", "array", "size", "modified_ns", "place"]


class FolderOutput:
    """A folder of ``.npy`` files and their index."""

    parts: PartWriter | None = None

    def __init__(self, out: Path, settings: dict[str, Any], sources: Iterable[Source]):
        if out.exists() and not out.is_dir():
            raise ConfigError(
                f"{out} is a file; a folder of .npy files is written where the output's name has no suffix."
            )
        self._out, self._index, self._is_new = out, out / INDEX, not out.exists()
        begun = self._begun_settings()
        with lock_kept(out, out) as self._lock:
            done = self._read_index()
            if done and begun is not None:
                check_settings(out, begun, settings)
            self._has_records = bool(done)
            planned = plan(sources, {file: origin for file, (_, origin) in done.items()}, out)
            self.left, self._origins = planned.left, planned.origins
            names = FolderNames(out, (name for name, _ in done.values()), (INDEX, SETTINGS, PENDING, LOCK))
            pending = self._read_pending()
            self._names = {source.file: names.name(source, pending) for source in self.left}
            if not done:
                write_settings(out / SETTINGS, settings)
                self._write_index(())

    def add(self, records: list[Record]) -> None:
        """Writes each record's arrays, then their lines of the index."""
        names = [self._names[record.file] for record in records]
        with replacing(self._out / PENDING) as partial:
            partial.write_text(json.dumps(names), encoding="utf-8")
        indexed = self._index.stat().st_size
        try:
            self._write(records, names)
        except BaseException:  # as by a full disk
            self._withdraw(names, indexed)
            raise
        self._has_records = True

    def _write(self, records: list[Record], names: list[str]) -> None:
        for record, name in zip(records, names, strict=True):
            if record.timestamps_s is not None:
                _save_array(self._out / (name + TIMES), record.timestamps_s)
            _save_array(self._out / (name + ARRAY), record.embedding)
        with open(self._index, "a", newline="", encoding="utf-8") as file:
            file.write(_lines(self._row(record.file) for record in records))
            file.flush()
            os.fsync(file.fileno())

    def _withdraw(self, names: list[str], indexed: int) -> None:
        """Removes arrays that were begun, and what the index says of them after so many bytes."""
        os.truncate(self._index, indexed)
        for name in names:
            for suffix in (ARRAY, TIMES):
                (self._out / (name + suffix)).unlink(missing_ok=True)

    def finish(self) -> None:
        """Lets the folder go; it has its final form at any time."""
        self.release()

    def release(self) -> None:
        """Lets the folder go, and removes what only names a job that has not begun."""
        self._lock.release()
        (self._out / LOCK).unlink(missing_ok=True)
        (self._out / PENDING).unlink(missing_ok=True)
        if not self._has_records:
            for name in (INDEX, SETTINGS):
                (self._out / name).unlink(missing_ok=True)
            if self._is_new and not any(self._out.iterdir()):
                self._out.rmdir()

    def _begun_settings(self) -> dict[str, Any] | None:
        """Settings of an earlier run; None: the folder is empty, or new.

        Raises:
            ConfigError: The folder is somebody else's.
        """
        settings = self._out / SETTINGS
        if settings.is_symlink() or self._index.is_symlink():
            raise ConfigError(f"{self._out} holds links. {WAY_OUT}")
        if settings.is_file():
            with reading_output(settings):
                return parse_settings(settings.read_text(encoding="utf-8"))
        if self._out.is_dir() and any(path.name != LOCK for path in self._out.iterdir()):
            raise ConfigError(
                f"--out {self._out} holds files that m2d-hub embed did not write; they are left alone. Give "
                "a new or an empty folder."
            )
        return None

    def _read_index(self) -> dict[str, tuple[str, Origin]]:
        """Array, without suffix, and origin by file; a last line that a kill cut short is dropped."""
        if not self._index.exists():
            return {}
        found, whole = _parsed_index(self._index)
        if whole != self._index.read_bytes():
            with replacing(self._index) as partial:
                partial.write_bytes(whole)
        return found

    def _write_index(self, rows: Iterable[list[Any]]) -> None:
        with replacing(self._index) as partial:
            partial.write_text(_lines([_COLUMNS, *rows]), encoding="utf-8", newline="")

    def _read_pending(self) -> frozenset[str]:
        path = self._out / PENDING
        if not path.is_file():
            return frozenset()
        with reading_output(path):
            return frozenset(json.loads(path.read_text(encoding="utf-8")))

    def _row(self, file: str) -> list[Any]:
        origin = self._origins[file]
        return [file, self._names[file] + ARRAY, origin.size, origin.modified_ns, origin.place]


def folder_contents(folder: Path) -> Contents:
    """Settings and names in a folder of embeddings.

    Raises:
        ConfigError: It was not written by this package, or is damaged.
    """
    with reading_output(folder / SETTINGS):
        settings = parse_settings((folder / SETTINGS).read_text(encoding="utf-8"))
    found, _ = _parsed_index(folder / INDEX)
    return Contents(settings, {file: origin for file, (_, origin) in found.items()})


def folder_records(folder: Path) -> Iterator[Record]:
    """The records of a folder of embeddings, in the order of its index, one at a time.

    Raises:
        ConfigError: They are damaged.
    """
    return checked(folder, _arrays(folder))


def _arrays(folder: Path) -> Iterator[Record]:
    for file, (name, _) in _parsed_index(folder / INDEX)[0].items():
        times = folder / (name + TIMES)
        yield Record(file, _array(folder / (name + ARRAY)), _array(times) if times.exists() else None)


def _array(path: Path) -> np.ndarray:
    with reading_output(path):
        array: np.ndarray = np.load(path)
    return array


def _parsed_index(index: Path) -> tuple[dict[str, tuple[str, Origin]], bytes]:
    """Array, without suffix, and origin by file; and the whole lines of the index, which told them."""
    with reading_output(index):
        text = index.read_bytes().decode("utf-8")
        whole = text[: text.rfind("\n") + 1]
        header, *rows = csv.reader(io.StringIO(whole, newline=""), strict=True)
        if header != _COLUMNS:
            raise ValueError(f"columns {header}")
        found = {
            file: (array.removesuffix(ARRAY), Origin(int(place), int(size), int(time)))
            for file, array, size, time, place in rows
        }
    return found, whole.encode("utf-8")


def _lines(rows: Iterable[list[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _save_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array)
