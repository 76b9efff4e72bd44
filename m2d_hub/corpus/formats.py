"""File formats of outputs, written and read row by row.

Shapes: N files, D features, T frames, L layers. ``.npz`` and ``.safetensors`` contain, for clips,
``embedding`` (N, D) and ``file`` (N,); for frames and layers, whose lengths differ, ``file`` and for each
file ``embedding/<file>`` (T, D) or (L, T, D) and ``timestamps_s/<file>`` (T,). They are written from memory.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.parquet import Parquet
from m2d_hub.corpus.records import SETTINGS_KEY, Entries, Fingerprint, Row, parse_settings
from m2d_hub.errors import ConfigError
from m2d_hub.io import open_file, replacing

INDEX, SETTINGS = "index.csv", "settings.json"  # of a folder
ARRAY, TIMES = ".npy", ".timestamps_s.npy"  # suffixes in a folder
MAX_HEADER_BYTES = 100_000_000  # that the safetensors library reads
_ENTRY_BYTES = 180  # at least, of a file's two arrays in the header, without its name


class Safetensors:
    """safetensors, with settings and file names in the metadata."""

    def write(self, path: Path, entries: Entries, rows: Iterable[Row]) -> None:
        from safetensors.numpy import save_file

        files = json.dumps(list(entries.fingerprints))
        metadata = {SETTINGS_KEY: json.dumps(entries.settings), "file": files}
        save_file(_arrays_of(entries, rows), path, metadata)

    def require(self, name: str, files: list[str], kind: str) -> None:
        """Check that the header can hold all files."""
        num_bytes = len(json.dumps(json.dumps(files)))
        if kind != "clip":
            num_bytes += sum(len(json.dumps(file)) for file in files) * 2 + len(files) * _ENTRY_BYTES
        if num_bytes > MAX_HEADER_BYTES:
            raise ConfigError(
                f"{name} cannot hold {len(files):,} files: their names take {num_bytes / 1e6:.0f} MB, and "
                f"safetensors reads {MAX_HEADER_BYTES / 1e6:.0f} MB. Use an output that ends in .parquet or "
                ".npz, or a folder."
            )

    def entries(self, source: Any) -> Entries:
        from safetensors import safe_open

        with safe_open(source, framework="numpy") as file:
            metadata = file.metadata() or {}
            return Entries.parse(
                metadata[SETTINGS_KEY], json.loads(metadata["file"]), file.get_tensor("origin")
            )

    def rows(self, source: Any) -> Iterator[Row]:
        from safetensors import safe_open

        with safe_open(source, framework="numpy") as file:
            clips = file.get_slice("embedding") if "embedding" in file.keys() else None  # noqa: SIM118
            for index, name in enumerate(json.loads(file.metadata()["file"])):
                if clips is not None:
                    yield Row(name, clips[index : index + 1][0])
                else:
                    times = file.get_tensor(f"timestamps_s/{name}")
                    yield Row(name, file.get_tensor(f"embedding/{name}"), times)


class Npz:
    """NumPy's archive, uncompressed; ``numpy.load`` reads it without pickle."""

    def write(self, path: Path, entries: Entries, rows: Iterable[Row]) -> None:
        arrays = {
            "settings": np.array(json.dumps(entries.settings)),
            "file": np.array(list(entries.fingerprints), dtype=np.str_),
            **_arrays_of(entries, rows),
        }
        with zipfile.ZipFile(path, "w") as archive:  # numpy.savez takes no array that is called file
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.save(member, array, allow_pickle=False)

    def entries(self, source: Any) -> Entries:
        with zipfile.ZipFile(source) as archive:
            settings = str(_Member(archive, "settings").read())
            return Entries.parse(
                settings, _Member(archive, "file").read().tolist(), _Member(archive, "origin").read()
            )

    def rows(self, source: Any) -> Iterator[Row]:
        with zipfile.ZipFile(source) as archive:
            files = _Member(archive, "file").read().tolist()
            if "embedding.npy" not in archive.namelist():
                for name in files:
                    times = _Member(archive, f"timestamps_s/{name}").read()
                    yield Row(name, _Member(archive, f"embedding/{name}").read(), times)
                return
            clips = _Member(archive, "embedding").read()
            yield from (Row(name, clip) for name, clip in zip(files, clips, strict=True))


class _Member:
    """An array in an uncompressed archive, whose size is checked before it is read."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        info = archive.getinfo(f"{name}.npy")
        self._file = archive.open(info)
        version = np.lib.format.read_magic(self._file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        self.shape, is_fortran, self._dtype = read_header(self._file)
        num_bytes = int(np.prod(self.shape, dtype=object)) * self._dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED or num_bytes > info.file_size:
            raise ValueError(f"array {name} is compressed or incomplete")
        if self._dtype.hasobject or is_fortran:
            raise ValueError(f"array {name} contains objects, or has the order of Fortran")

    def read(self) -> np.ndarray:
        """Return the whole array."""
        return np.frombuffer(self._file.read(), self._dtype).reshape(self.shape)


class NpyFolder:
    """A folder of ``.npy`` files; ``index.csv`` names the array of each audio file.

    The index is written before new arrays, so that an interrupted run knows which arrays are its own; an
    entry without its array is not finished.
    """

    columns = ("file", "array", "size", "modified_ns", "place")

    def __init__(self, arrays: dict[str, str] | None = None):
        """Take the paths of arrays to write, relative and without suffix, by file."""
        self._arrays = arrays or {}

    def write(self, path: Path, entries: Entries, rows: Iterable[Row]) -> None:
        table = io.StringIO(newline="")
        lines = csv.writer(table, lineterminator="\n")
        lines.writerow(self.columns)
        for file, fingerprint in entries.fingerprints.items():
            place, size, modified_ns = astuple(fingerprint)
            lines.writerow([file, self._arrays[file] + ARRAY, size, modified_ns, place])
        for name, text in (
            (SETTINGS, json.dumps(entries.settings, indent=2) + "\n"),
            (INDEX, table.getvalue()),
        ):
            with replacing(path / name) as partial:
                partial.write_text(text, encoding="utf-8", newline="")
        for row in rows:
            if row.timestamps_s is not None:
                _save_array(path / (self._arrays[row.file] + TIMES), row.timestamps_s)
            _save_array(path / (self._arrays[row.file] + ARRAY), row.embedding)

    def entries(self, source: Any) -> Entries:
        settings = parse_settings(_read_text(source / SETTINGS))
        return Entries(
            settings, {file: fingerprint for file, (_, fingerprint) in self._index(source).items()}
        )

    def rows(self, source: Any) -> Iterator[Row]:
        for file, array in self.arrays(source).items():
            times = source / (array + TIMES)
            yield Row(
                file, _load_array(source / (array + ARRAY)), _load_array(times) if times.exists() else None
            )

    def arrays(self, source: Path) -> dict[str, str]:
        """Return the paths of all arrays, relative and without suffix, by file."""
        return {file: array for file, (array, _) in self._index(source).items()}

    def _index(self, source: Path) -> dict[str, tuple[str, Fingerprint]]:
        header, *lines = csv.reader(io.StringIO(_read_text(source / INDEX), newline=""), strict=True)
        if tuple(header) != self.columns:
            raise ValueError(f"columns {header}")
        if any(os.path.isabs(line[1]) or ".." in Path(line[1]).parts for line in lines):
            raise ValueError("an array outside of the folder")
        return {
            file: (array.removesuffix(ARRAY), Fingerprint(int(place), int(size), int(modified_ns)))
            for file, array, size, modified_ns, place in lines
        }


Format = Parquet | Safetensors | Npz | NpyFolder
FORMATS: dict[str, Format] = {".parquet": Parquet(), ".npz": Npz(), ".safetensors": Safetensors()}


def _arrays_of(entries: Entries, rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """Return the fingerprints and embeddings of an ``.npz`` or ``.safetensors``, which fit into memory."""
    arrays = {"origin": entries.table}
    clips = []
    for row in rows:
        embedding = np.ascontiguousarray(row.embedding, dtype=np.float32)
        if row.timestamps_s is None:
            clips.append(embedding)
        else:
            arrays[f"embedding/{row.file}"] = embedding
            arrays[f"timestamps_s/{row.file}"] = np.asarray(row.timestamps_s, dtype=np.float64)
    if clips:
        arrays["embedding"] = np.stack(clips)
    return arrays


def _save_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def _load_array(path: Path) -> np.ndarray:
    open_file(path, "an array", ConfigError).close()
    return np.array(
        np.load(path, mmap_mode="r")
    )  # mapped, so that its header cannot claim more than there is


def _read_text(path: Path) -> str:
    with open_file(path, "embeddings", ConfigError) as file:
        return file.read().decode("utf-8")
