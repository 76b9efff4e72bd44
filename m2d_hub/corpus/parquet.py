"""Embeddings as Apache Parquet, one row per file or segment.

Columns of segments: ``file``, ``start_s``, ``end_s``, ``embedding`` (D,), and those of the fingerprint. Other
columns: ``file``; ``embedding``, a list of D numbers for a clip, nested lists (T, D) for frames and (L, T, D)
for layers, which also have ``num_frames`` and ``timestamps_s`` (T,); ``origin_place``, ``origin_size`` and
``origin_modified_ns``, the fingerprint of the audio file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m2d_hub.corpus.records import Fingerprint, Row, Segment, batched, joined_segments
from m2d_hub.errors import ConfigError
from m2d_hub.io import importing

SETTINGS_KEY = "m2d_hub"  # under which metadata contains the settings
ROW_GROUP_BYTES = 32 << 20
_FINGERPRINT = ("origin_place", "origin_size", "origin_modified_ns")
_MAX_EXPANSION = 100  # a file may take this many times its size in memory,
_MIN_BUDGET_BYTES = 64 << 20  # or this much


class Parquet:
    """The format."""

    def write(self, path: Path, settings: dict[str, Any], rows: Iterable[Row]) -> None:
        """Write rows of one kind."""
        _, parquet = require_pyarrow()
        writer = None
        try:
            for group in batched(rows, lambda row: row.embedding.nbytes, ROW_GROUP_BYTES):
                table = _table_of(group, settings)
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    def entries(self, file: BinaryIO) -> tuple[bytes, list[str], list[Fingerprint]]:
        """Return settings, names and fingerprints, without reading embeddings."""
        _, parquet = require_pyarrow()
        with parquet.ParquetFile(file, read_dictionary=["file"]) as stored:
            _check_size(stored, file)
            table = stored.read(columns=["file", *_FINGERPRINT])
            has_segments = "start_s" in stored.schema_arrow.names
            if not has_segments and sum(len(chunk.dictionary) for chunk in table["file"].chunks) < len(table):
                raise ValueError("file names that are not unique")
            fingerprints = zip(*(table[name].to_pylist() for name in _FINGERPRINT), strict=True)
            rows = zip(table["file"].to_pylist(), map(Fingerprint._make, fingerprints), strict=True)
            entries = [entry for entry, _ in groupby(rows)] if has_segments else list(rows)
            settings = stored.schema_arrow.metadata[SETTINGS_KEY.encode()]
            return settings, [file for file, _ in entries], [fingerprint for _, fingerprint in entries]

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Return the rows."""
        _, parquet = require_pyarrow()
        with parquet.ParquetFile(file) as stored:
            _check_size(stored, file)
            if "start_s" in stored.schema_arrow.names:
                yield from joined_segments(_segments_of(stored))
                return
            for batch in stored.iter_batches(batch_size=64):
                times = batch.column("timestamps_s") if "timestamps_s" in batch.schema.names else None
                for index in range(len(batch)):
                    yield Row(
                        batch.column("file")[index].as_py(),
                        _unnested(batch.column("embedding")[index].values),
                        None if times is None else times[index].values.to_numpy(),
                        Fingerprint(*(batch.column(name)[index].as_py() for name in _FINGERPRINT)),
                    )


def require_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet."""
    hint = "Outputs that end in .npz or .safetensors, and folders, work without it."
    with importing("pyarrow", ".parquet", "parquet", hint):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet


def _segments_of(stored: Any) -> Iterator[Segment]:
    for batch in stored.iter_batches(batch_size=64):
        names = ("file", *_FINGERPRINT, "start_s", "end_s")
        columns = [batch.column(name).to_pylist() for name in names]
        for index, (file, *fingerprint, start_s, end_s) in enumerate(zip(*columns, strict=True)):
            embedding = _unnested(batch.column("embedding")[index].values)
            yield file, Fingerprint(*fingerprint), embedding, start_s, end_s


def _table_of(rows: list[Row], settings: dict[str, Any]) -> Any:
    """Return rows as a pyarrow table, whose schema carries the settings."""
    pyarrow, _ = require_pyarrow()
    has_segments = rows[0].is_segments
    repeats = [len(row.embedding) if has_segments else 1 for row in rows]
    files = np.repeat(np.array([row.file for row in rows], object), repeats)
    columns = {"file": pyarrow.array(files, pyarrow.string())}
    times = [row.timestamps_s for row in rows if row.timestamps_s is not None]
    if has_segments:
        columns["start_s"], columns["end_s"] = map(pyarrow.array, np.concatenate(times).T.copy())
    embeddings = [row.embedding for row in rows]
    columns["embedding"] = _nested(pyarrow, list(np.concatenate(embeddings)) if has_segments else embeddings)
    for index, name in enumerate(_FINGERPRINT):
        values = np.repeat([row.fingerprint[index] for row in rows], repeats)
        columns[name] = pyarrow.array(values, pyarrow.int64())
    if times and not has_segments:
        columns["num_frames"] = pyarrow.array([len(each) for each in times], pyarrow.int32())
        columns["timestamps_s"] = pyarrow.array(times, pyarrow.list_(pyarrow.float64()))
    return pyarrow.table(columns).replace_schema_metadata({SETTINGS_KEY: json.dumps(settings)})


def _check_size(stored: Any, file: BinaryIO) -> None:
    """Refuse a file that would take far more memory than its size, before any embedding is decoded."""
    num_bytes = file.seek(0, os.SEEK_END)
    limit = _MAX_EXPANSION * num_bytes + _MIN_BUDGET_BYTES
    metadata, kind = stored.metadata, stored.schema_arrow.field("embedding").type
    while not hasattr(kind, "list_size"):
        kind = kind.value_type
    expanded = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    expanded = max(expanded, metadata.num_rows * max(100, 4 * kind.list_size))
    if expanded <= limit and "num_frames" in stored.schema_arrow.names:
        frames = stored.read(columns=["num_frames"])["num_frames"].to_numpy()
        expanded = max(expanded, int(frames.sum(dtype=np.int64)) * 4 * kind.list_size)
    if expanded > limit:
        raise ValueError(f"{expanded / 1e9:.1f} GB of values in {num_bytes:,} bytes")


def _nested(pyarrow: Any, arrays: list[np.ndarray]) -> Any:
    """Return arrays of one rank as a column of nested lists, of which the innermost has D values."""
    if sum(array.size for array in arrays) >= 1 << 31:
        raise ConfigError(
            "a recording is too long for a row of Parquet (2^31 numbers); use an output that ends in .npz, "
            "or a folder."
        )
    flat = np.concatenate([array.reshape(-1) for array in arrays])
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
