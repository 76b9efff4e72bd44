"""Embeddings of many files in one NumPy or safetensors file, written and read record by record.

Shapes: N files, D features, T frames, L layers.

- clip: ``embedding`` (N, D) and ``file`` (N,);
- frames and layers, which differ in length: ``file``, then for each file ``embedding/<file>`` (T, D) or
  (L, T, D) and ``timestamps_s/<file>`` (T,).
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.parquet import Parquet
from m2d_hub.corpus.records import SETTINGS_KEY, Contents, Format, Record, reading_output
from m2d_hub.errors import ConfigError

MAX_HEADER_BYTES = 100_000_000  # that the safetensors library reads
_ENTRY_BYTES = 180  # of a file's two arrays in the header, beside its name: no less


class Safetensors(Format):
    """safetensors; settings and file names are in its metadata."""

    def write(self, path: Path, contents: Contents, records: Iterable[Record]) -> None:
        # The library writes only what is in memory as a whole, so the (simple) layout is written here.
        metadata = {SETTINGS_KEY: json.dumps(contents.settings), "file": json.dumps(contents.files)}
        header: dict[str, Any] = {"__metadata__": metadata}
        origins = contents.origin_table
        body_path = path.with_name(path.name + ".body")
        try:
            with open(body_path, "w+b") as body:
                body.write(origins.tobytes())
                header["origin"] = {"dtype": "I64", "shape": origins.shape, "data_offsets": [0, body.tell()]}
                for record in records:
                    for name, array in _named(record):
                        _extend(header, name, array, body.tell())
                        body.write(array.tobytes())
                text = json.dumps(header).encode()
                text += b" " * (-len(text) % 8)
                _check_header(path, len(text), len(contents.files))
                body.seek(0)
                with open(path, "wb") as file:
                    file.write(len(text).to_bytes(8, "little") + text)
                    shutil.copyfileobj(body, file, 1 << 20)
        finally:
            body_path.unlink(missing_ok=True)

    def require(self, path: Path, files: list[str], kind: str) -> None:
        num_bytes = len(json.dumps(json.dumps(files)))
        if kind != "clip":
            num_bytes += sum(len(json.dumps(file)) for file in files) * 2 + len(files) * _ENTRY_BYTES
        _check_header(path, num_bytes, len(files))

    def contents(self, path: Path, name: object = None) -> Contents:
        from safetensors import safe_open

        with reading_output(path), safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = json.loads(metadata["file"])
            return Contents.parse(metadata[SETTINGS_KEY], names, file.get_tensor("origin"))

    def _records(self, path: Path) -> Iterator[Record]:
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            files = json.loads(file.metadata()["file"])
            rows = file.get_slice("embedding") if "embedding" in file.keys() else None  # noqa: SIM118
            for index, name in enumerate(files):
                if rows is not None:
                    yield Record(name, rows[index : index + 1][0])
                else:
                    yield Record(
                        name, file.get_tensor(f"embedding/{name}"), file.get_tensor(f"timestamps_s/{name}")
                    )


class Npz(Format):
    """NumPy's archive, uncompressed; ``numpy.load`` reads it without pickle."""

    def write(self, path: Path, contents: Contents, records: Iterable[Record]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            _add_array(archive, "settings", np.array(json.dumps(contents.settings)))
            _add_array(archive, "file", np.array(contents.files, dtype=np.str_))
            _add_array(archive, "origin", contents.origin_table)
            rows: Any = None
            for record in records:
                for name, array in _named(record):
                    if name != "embedding":
                        _add_array(archive, name, array)
                        continue
                    if rows is None:
                        rows = archive.open("embedding.npy", "w", force_zip64=True)
                        _write_header(rows, (len(contents.files), *array.shape), array.dtype)
                    rows.write(array.tobytes())
            if rows is not None:
                rows.close()

    def contents(self, path: Path, name: object = None) -> Contents:
        with reading_output(path), _arrays(path) as arrays:
            return Contents.parse(str(arrays["settings"]), arrays["file"].tolist(), arrays["origin"])

    def _records(self, path: Path) -> Iterator[Record]:
        with _arrays(path) as arrays:
            files = arrays["file"].tolist()
            if "embedding" in arrays.files:
                yield from self._rows(path, files)
            else:
                for name in files:
                    yield Record(name, arrays[f"embedding/{name}"], arrays[f"timestamps_s/{name}"])

    def _rows(self, path: Path, files: list[str]) -> Iterator[Record]:
        with zipfile.ZipFile(path) as archive, archive.open("embedding.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            for name in files:
                yield Record(name, np.frombuffer(member.read(shape[1] * dtype.itemsize), dtype))


FORMATS: dict[str, Format] = {".parquet": Parquet(), ".npz": Npz(), ".safetensors": Safetensors()}


def _named(record: Record) -> list[tuple[str, np.ndarray]]:
    embedding = np.ascontiguousarray(record.embedding, dtype=np.float32)
    if record.timestamps_s is None:
        return [("embedding", embedding)]
    times = np.asarray(record.timestamps_s, dtype=np.float64)
    return [(f"embedding/{record.file}", embedding), (f"timestamps_s/{record.file}", times)]


def _extend(header: dict[str, Any], name: str, array: np.ndarray, start: int) -> None:
    """Enters an array of a safetensors file; those of clips are the rows of one."""
    dtype = "F64" if array.dtype == np.float64 else "F32"
    if name != "embedding":
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, start + array.nbytes]}
        return
    rows = header.setdefault(
        name, {"dtype": dtype, "shape": [0, *array.shape], "data_offsets": [start, start]}
    )
    rows["shape"][0] += 1
    rows["data_offsets"][1] += array.nbytes


def _check_header(path: Path, num_bytes: int, num_files: int) -> None:
    if num_bytes > MAX_HEADER_BYTES:
        raise ConfigError(
            f"{path.name.removesuffix('.partial')} cannot hold {num_files:,} files: the header that names "
            f"them would have {num_bytes / 1e6:.0f} MB, and safetensors reads {MAX_HEADER_BYTES / 1e6:.0f} "
            "MB. Give the output a name that ends in .parquet or .npz, or a folder."
        )


def _add_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    archive.writestr(f"{name}.npy", buffer.getbuffer().tobytes())


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """An archive's arrays; numpy itself leaves a file open that is no archive."""
    with path.open("rb") as file, np.load(file) as arrays:
        yield arrays


def _write_header(member: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        member, {"descr": description, "fortran_order": False, "shape": shape}
    )
