"""File formats of outputs, written and read row by row.

Shapes: N files or segments, D features, T frames, L layers. ``.npz`` and ``.safetensors`` contain, for clips,
``embedding`` (N, D) and ``file`` (N,), and for segments also ``start_s`` and ``end_s`` (N,); for frames and
layers, whose lengths differ, ``file`` and for each file ``embedding/<file>`` (T, D) or (L, T, D) and
``timestamps_s/<file>`` (T,). They are written from memory.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m2d_hub.corpus.parquet import SETTINGS_KEY, Parquet
from m2d_hub.corpus.records import Fingerprint, Row, joined_segments
from m2d_hub.errors import ConfigError
from m2d_hub.io import open_file, replacing

INDEX, SETTINGS = "index.csv", "settings.json"  # of a folder
ARRAY, TIMES = ".npy", ".timestamps_s.npy"  # suffixes in a folder


@dataclass(frozen=True)
class _Contents:
    """An opened ``.npz`` or ``.safetensors``."""

    settings: str
    files: list[str]
    names: Collection[str]  # of arrays
    get: Callable[[str], np.ndarray]

    @property
    def fingerprints(self) -> list[Fingerprint]:
        table = self.get("origin")
        if table.shape != (len(self.files), 3) or table.dtype != np.int64:
            raise ValueError(f"fingerprints of shape {table.shape} for {len(self.files)} files")
        return [Fingerprint(*row) for row in table.tolist()]


@dataclass(frozen=True)
class ArrayFile:
    """A format of named arrays."""

    save: Callable[[Path, str, list[str], dict[str, np.ndarray]], None]
    opened: Callable[[BinaryIO], AbstractContextManager[_Contents]]

    def write(self, path: Path, settings: dict[str, Any], rows: Iterable[Row]) -> None:
        """Write rows of one kind."""
        files, origin, clips = list[str](), list[Fingerprint](), list[np.ndarray]()
        arrays: dict[str, np.ndarray] = {}
        times: list[np.ndarray] = []
        for row in rows:
            repeats = len(row.embedding) if row.is_segments else 1
            files += [row.file] * repeats
            origin += [row.fingerprint] * repeats
            if row.timestamps_s is None:
                clips.append(row.embedding)
            elif row.is_segments:
                clips += list(row.embedding)
                times.append(row.timestamps_s)
            else:
                arrays[f"embedding/{row.file}"] = np.ascontiguousarray(row.embedding)
                arrays[f"timestamps_s/{row.file}"] = row.timestamps_s
        if clips:
            arrays["embedding"] = np.stack(clips)
        if times:
            arrays["start_s"], arrays["end_s"] = np.concatenate(times).T.copy()
        arrays["origin"] = np.array(origin, np.int64).reshape(-1, 3)
        self.save(path, json.dumps(settings), files, arrays)

    def entries(self, file: BinaryIO) -> tuple[str, list[str], list[Fingerprint]]:
        """Return settings, names and fingerprints."""
        with self.opened(file) as contents:
            files, fingerprints = contents.files, contents.fingerprints
            if "start_s" in contents.names:
                entries = [entry for entry, _ in groupby(zip(files, fingerprints, strict=True))]
                files, fingerprints = map(list, zip(*entries, strict=True))
            return contents.settings, files, fingerprints

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Return the rows."""
        with self.opened(file) as contents:
            clips = contents.get("embedding") if "embedding" in contents.names else None
            if "start_s" in contents.names:
                names = ("embedding", "start_s", "end_s")
                columns = (contents.files, contents.fingerprints, *map(contents.get, names))
                yield from joined_segments(zip(*columns, strict=True))
                return
            for index, (name, fingerprint) in enumerate(
                zip(contents.files, contents.fingerprints, strict=True)
            ):
                if clips is not None:
                    yield Row(name, clips[index], None, fingerprint)
                else:
                    times = contents.get(f"timestamps_s/{name}")
                    yield Row(name, contents.get(f"embedding/{name}"), times, fingerprint)


def _save_npz(path: Path, settings: str, files: list[str], arrays: dict[str, np.ndarray]) -> None:
    arrays = {"settings": np.array(settings), "file": np.array(files, np.str_), **arrays}
    with zipfile.ZipFile(path, "w") as archive:  # numpy.savez takes no array that is called file
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.save(member, array, allow_pickle=False)


@contextlib.contextmanager
def _open_npz(file: BinaryIO) -> Iterator[_Contents]:
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("its arrays are compressed")  # to any size
    file.seek(0)
    with np.load(file) as arrays:
        yield _Contents(
            str(arrays["settings"]), arrays["file"].tolist(), arrays.files, lambda name: arrays[name]
        )


def _save_safetensors(path: Path, settings: str, files: list[str], arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path, {SETTINGS_KEY: settings, "file": json.dumps(files)})


@contextlib.contextmanager
def _open_safetensors(file: BinaryIO) -> Iterator[_Contents]:
    from safetensors import safe_open

    with safe_open(file.name, framework="numpy") as arrays:
        metadata = arrays.metadata()
        yield _Contents(
            metadata[SETTINGS_KEY], json.loads(metadata["file"]), arrays.keys(), arrays.get_tensor
        )


class NpyFolder:
    """A folder of ``.npy`` files; ``index.csv``, written last, names the array of each audio file."""

    columns = ("file", "array", "size", "modified_ns", "place")

    def write(
        self, folder: Path, settings: dict[str, Any], rows: Iterable[Row], arrays: dict[str, str]
    ) -> None:
        """Add rows; ``arrays`` has the path of each array, relative and without suffix, by file."""
        index = self.index(folder)
        with replacing(folder / SETTINGS) as partial:
            partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for row in rows:
            array = arrays[row.file]
            if row.timestamps_s is not None:
                _save_array(folder / (array + TIMES), row.timestamps_s)
            _save_array(folder / (array + ARRAY), row.embedding)
            index[row.file] = array, row.fingerprint
        with (
            replacing(folder / INDEX) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(self.columns)
            for name, (array, (place, size, modified_ns)) in index.items():
                table.writerow([name, array + ARRAY, size, modified_ns, place])

    def entries(self, folder: Path) -> tuple[str, list[str], list[Fingerprint]]:
        """Return settings, names and fingerprints."""
        index = self.index(folder)
        return _read_text(folder / SETTINGS), list(index), [fingerprint for _, fingerprint in index.values()]

    def rows(self, folder: Path) -> Iterator[Row]:
        """Return the rows."""
        for file, (array, fingerprint) in self.index(folder).items():
            times = folder / (array + TIMES)
            embedding = _load_array(folder / (array + ARRAY))
            yield Row(file, embedding, _load_array(times) if times.exists() else None, fingerprint)

    def index(self, folder: Path) -> dict[str, tuple[str, Fingerprint]]:
        """Return the path of each array, relative and without suffix, and the fingerprint, by file."""
        if not (folder / INDEX).exists():
            return {}
        header, *lines = csv.reader(io.StringIO(_read_text(folder / INDEX), newline=""), strict=True)
        if tuple(header) != self.columns:
            raise ValueError(f"columns {header}")
        if any(os.path.isabs(line[1]) or ".." in Path(line[1]).parts for line in lines):
            raise ValueError("an array outside of the folder")
        return {
            file: (array.removesuffix(ARRAY), Fingerprint(int(place), int(size), int(modified_ns)))
            for file, array, size, modified_ns, place in lines
        }


FORMATS: dict[str, Parquet | ArrayFile] = {
    ".parquet": Parquet(),
    ".npz": ArrayFile(_save_npz, _open_npz),
    ".safetensors": ArrayFile(_save_safetensors, _open_safetensors),
}


def _save_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def _load_array(path: Path) -> np.ndarray:
    open_file(path, "an array", ConfigError).close()
    return np.array(np.load(path, mmap_mode="r"))  # mapped: its header cannot claim more than there is


def _read_text(path: Path) -> str:
    with open_file(path, "embeddings", ConfigError) as file:
        return file.read().decode("utf-8")
