"""Embeddings of many files as an Apache Parquet file, one row a file.

Columns: ``file``; ``embedding``, a list of D numbers for a clip, nested lists (T, D) for frames and (L, T, D)
for layers; for these two also ``num_frames`` and ``timestamps_s`` (T,). ``origin_place``, ``origin_size`` and
``origin_modified_ns`` tell the audio file from others of its name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.records import SETTINGS_KEY, Contents, Format, Origin, Record, reading_output
from m2d_hub.errors import ConfigError
from m2d_hub.io import importing

ROW_GROUP_BYTES = 32 << 20


class Parquet(Format):
    """Apache Parquet, one row a file; settings are in the schema's metadata."""

    def require(self, path: Path, files: list[str], kind: str) -> None:
        _pyarrow()

    def write(self, path: Path, contents: Contents, records: Iterable[Record]) -> None:
        pyarrow, parquet = _pyarrow()
        writer = None
        try:
            for group in _grouped(records, ROW_GROUP_BYTES):
                columns = {
                    "file": pyarrow.array([record.file for record in group], pyarrow.string()),
                    "embedding": _nested(pyarrow, [record.embedding for record in group]),
                }
                origins = [contents.origins[record.file] for record in group]
                for field in dataclasses.fields(Origin):
                    values = [getattr(origin, field.name) for origin in origins]
                    columns[f"origin_{field.name}"] = pyarrow.array(values, pyarrow.int64())
                if group[0].timestamps_s is not None:
                    times = [record.timestamps_s for record in group if record.timestamps_s is not None]
                    columns["num_frames"] = pyarrow.array([len(t) for t in times], pyarrow.int32())
                    columns["timestamps_s"] = pyarrow.array(times, pyarrow.list_(pyarrow.float64()))
                table = pyarrow.table(columns).replace_schema_metadata(
                    {SETTINGS_KEY: json.dumps(contents.settings)}
                )
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    def contents(self, path: Any, name: object = None) -> Contents:
        _, parquet = _pyarrow()
        columns = [f"origin_{field.name}" for field in dataclasses.fields(Origin)]
        with reading_output(path, name), parquet.ParquetFile(path) as file:
            settings = (file.schema_arrow.metadata or {})[SETTINGS_KEY.encode()]
            table = file.read(columns=["file", *columns])
            rows = np.stack([table[column].to_numpy() for column in columns], axis=1)
            return Contents.parse(settings, table["file"].to_pylist(), rows)

    def _records(self, path: Any) -> Iterator[Record]:
        _, parquet = _pyarrow()
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                times = batch.column("timestamps_s") if "timestamps_s" in batch.schema.names else None
                for row, name in enumerate(batch.column("file").to_pylist()):
                    embedding = _unnested(batch.column("embedding")[row].values)
                    yield Record(name, embedding, None if times is None else times[row].values.to_numpy())


def write_index(path: Path, parts: Iterable[tuple[str, list[str]]]) -> None:
    """Writes where each file's row is: columns ``file``, ``part`` (a file's name) and ``row`` in it.

    Args:
        path: The file to write.
        parts: Name of each, and its files in the order of its rows.
    """
    pyarrow, parquet = _pyarrow()
    schema = pyarrow.schema(
        [("file", pyarrow.string()), ("part", pyarrow.string()), ("row", pyarrow.int32())]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for name, files in parts:
            columns = [files, [name] * len(files), list(range(len(files)))]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _grouped(records: Iterable[Record], most_bytes: int) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += record.num_bytes
        if size >= most_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _nested(pyarrow: Any, arrays: list[np.ndarray]) -> Any:
    """Arrays of one rank as a column of nested lists; the innermost, of D features, has a fixed size."""
    if sum(array.size for array in arrays) >= 1 << 31:
        raise ConfigError(
            "a recording is too long for a row of Parquet (2^31 numbers); give the output a name ending in "
            ".npz, or a folder."
        )
    flat = np.concatenate([np.asarray(array, dtype=np.float32).reshape(-1) for array in arrays])
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), arrays[0].shape[-1])
    for axis in range(arrays[0].ndim - 2, -1, -1):
        lengths = np.concatenate([np.full(int(np.prod(a.shape[:axis])), a.shape[axis]) for a in arrays])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        column = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), column)
    return column


def _unnested(values: Any) -> np.ndarray:
    shape = [len(values)]
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        values = values.flatten()
        shape.append(len(values) // int(np.prod(shape)))
    return values.to_numpy().reshape(shape)


def _pyarrow() -> tuple[Any, Any]:
    way_out = "An output whose name ends in .npz or .safetensors, or a folder, needs nothing."
    with importing("pyarrow", ".parquet", "parquet", way_out):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet
