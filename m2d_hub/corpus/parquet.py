"""Embeddings as Apache Parquet, one row per file.

Columns: ``file``; ``embedding``, a list of D numbers for a clip, nested lists (T, D) for frames and (L, T, D)
for layers, which also have ``num_frames`` and ``timestamps_s`` (T,); ``origin_place``, ``origin_size`` and
``origin_modified_ns``, the fingerprint of the audio file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.records import SETTINGS_KEY, Entries, Row
from m2d_hub.errors import ConfigError
from m2d_hub.io import importing

ROW_GROUP_BYTES = 32 << 20
_FINGERPRINT = ("origin_place", "origin_size", "origin_modified_ns")
_MAX_EXPANSION = 100  # a file may take this many times its size in memory,
_MIN_BUDGET_BYTES = 64 << 20  # or this much


class Parquet:
    """The format, for paths and for open files."""

    def require(self, name: str, files: list[str], kind: str) -> None:
        """Check that pyarrow is installed."""
        require_pyarrow()

    def write(self, path: Path, entries: Entries, rows: Iterable[Row]) -> None:
        """Write rows, which must be those of ``entries``."""
        _, parquet = require_pyarrow()
        writer = None
        try:
            for group in _grouped(rows):
                table = table_of(group, entries)
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    def entries(self, source: Any) -> Entries:
        """Return settings and fingerprints, without reading embeddings."""
        _, parquet = require_pyarrow()
        with parquet.ParquetFile(source, read_dictionary=["file"]) as file:
            _check_size(file, source)
            table = file.read(columns=["file", *_FINGERPRINT])
            if sum(len(chunk.dictionary) for chunk in table["file"].chunks) < len(table):
                raise ValueError("file names that are not unique")
            fingerprints = np.stack([table[name].to_numpy() for name in _FINGERPRINT], axis=1)
            settings = (file.schema_arrow.metadata or {})[SETTINGS_KEY.encode()]
            return Entries.parse(settings, table["file"].to_pylist(), fingerprints)

    def rows(self, source: Any) -> Iterator[Row]:
        """Return the rows, one at a time."""
        _, parquet = require_pyarrow()
        with parquet.ParquetFile(source) as file:
            _check_size(file, source)
            for batch in file.iter_batches(batch_size=64):
                times = batch.column("timestamps_s") if "timestamps_s" in batch.schema.names else None
                for index, name in enumerate(batch.column("file").to_pylist()):
                    embedding = _unnested(batch.column("embedding")[index].values)
                    yield Row(name, embedding, None if times is None else times[index].values.to_numpy())


def require_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet.

    Raises:
        ConfigError: They are not installed.
    """
    hint = "Outputs that end in .npz or .safetensors, and folders, work without it."
    with importing("pyarrow", ".parquet", "parquet", hint):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet


def table_of(rows: list[Row], entries: Entries) -> Any:
    """Return rows as a pyarrow table, whose schema carries the settings."""
    pyarrow, _ = require_pyarrow()
    columns = {
        "file": pyarrow.array([row.file for row in rows], pyarrow.string()),
        "embedding": _nested(pyarrow, [row.embedding for row in rows]),
    }
    fingerprints = Entries({}, {row.file: entries.fingerprints[row.file] for row in rows}).table
    for index, name in enumerate(_FINGERPRINT):
        columns[name] = pyarrow.array(fingerprints[:, index])
    times = [row.timestamps_s for row in rows if row.timestamps_s is not None]
    if times:
        columns["num_frames"] = pyarrow.array([len(each) for each in times], pyarrow.int32())
        columns["timestamps_s"] = pyarrow.array(times, pyarrow.list_(pyarrow.float64()))
    return pyarrow.table(columns).replace_schema_metadata({SETTINGS_KEY: json.dumps(entries.settings)})


def _check_size(file: Any, source: Any) -> None:
    """Refuse a file that would take far more memory than its size, before any embedding is decoded."""
    num_bytes = os.stat(source).st_size if isinstance(source, Path) else source.seek(0, os.SEEK_END)
    limit = _MAX_EXPANSION * num_bytes + _MIN_BUDGET_BYTES
    metadata, kind = file.metadata, file.schema_arrow.field("embedding").type
    while not hasattr(kind, "list_size"):
        if not hasattr(kind, "value_type"):
            raise ValueError("embeddings without a fixed size")
        kind = kind.value_type
    expanded = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    expanded = max(expanded, metadata.num_rows * max(100, 4 * kind.list_size))
    if expanded <= limit and "num_frames" in file.schema_arrow.names:
        frames = file.read(columns=["num_frames"])["num_frames"].to_numpy()
        expanded = max(expanded, int(frames.sum(dtype=np.int64)) * 4 * kind.list_size)
    if expanded > limit:
        raise ValueError(f"{expanded / 1e9:.1f} GB of values in {num_bytes:,} bytes")


def _grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += row.embedding.nbytes
        if num_bytes >= ROW_GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _nested(pyarrow: Any, arrays: list[np.ndarray]) -> Any:
    """Return arrays of one rank as a column of nested lists, of which the innermost has D values."""
    if sum(array.size for array in arrays) >= 1 << 31:
        raise ConfigError(
            "a recording is too long for a row of Parquet (2^31 numbers); use an output that ends in .npz, "
            "or a folder."
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
