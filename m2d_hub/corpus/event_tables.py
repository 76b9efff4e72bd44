"""Tables of events: CSV, JSON lines, Parquet, Raven selection tables and Audacity labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from m2d_hub.corpus.parquet import require_pyarrow
from m2d_hub.errors import ConfigError
from m2d_hub.io import as_cell, as_text, replacing

RAVEN_SUFFIX = ".selections.txt"
COLUMNS = ("file", "start_s", "end_s", "label", "score")
_RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin Path", "File Offset (s)", "Annotation", "Score"),
)


@dataclass(frozen=True)
class EventRow:
    """An event of a file."""

    file: str
    start_s: float
    end_s: float
    label: str
    score: float


@dataclass(frozen=True)
class FileEvents:
    """All events of a file."""

    file: str
    duration_s: float
    rows: list[EventRow]


def check_table(path: Path, num_files: int) -> None:
    """Check that a table of the events of ``num_files`` files can be written.

    Raises:
        ConfigError: The suffix is unknown, pyarrow is missing for Parquet, or a table of Audacity would hold
            several files.
    """
    kind = _kind_of(path)
    if kind == ".parquet":
        require_pyarrow()
    if kind == ".txt" and num_files > 1:
        raise ConfigError(
            f"{path} is a file of Audacity labels, which belong to one recording, but {num_files} were "
            f"given; use .csv, or {RAVEN_SUFFIX} for Raven."
        )


def write_table(path: Path, files: Iterable[FileEvents], max_frequency_hz: float) -> None:
    """Write events in the format of the suffix; an existing file is replaced.

    Args:
        path: ``.csv``, ``.jsonl``, ``.parquet``, ``.selections.txt`` (Raven) or ``.txt`` (Audacity).
        files: Files in order.
        max_frequency_hz: Upper limit of the boxes in Raven.
    """
    kind = _kind_of(path)
    with replacing(path) as partial:
        if kind == ".parquet":
            _write_parquet(partial, files)
            return
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            if kind == RAVEN_SUFFIX:
                _write_raven(out, files, max_frequency_hz)
            else:
                _WRITERS[kind](out, (row for file in files for row in file.rows))


def _kind_of(path: Path) -> str:
    if path.name.lower().endswith(RAVEN_SUFFIX):
        return RAVEN_SUFFIX
    suffix = path.suffix.lower()
    if suffix not in {*_WRITERS, ".parquet"}:
        allowed = ", ".join([*_WRITERS, ".parquet", RAVEN_SUFFIX])
        raise ConfigError(f"{path} has the suffix {suffix!r}; use one of {allowed}.")
    return suffix


def _write_csv(out: TextIO, rows: Iterator[EventRow]) -> None:
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {"file": as_cell(row.file), "label": as_cell(row.label)}
            | {"start_s": f"{row.start_s:.3f}", "end_s": f"{row.end_s:.3f}", "score": f"{row.score:.4f}"}
        )


def _write_json_lines(out: TextIO, rows: Iterator[EventRow]) -> None:
    out.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def _write_audacity(out: TextIO, rows: Iterator[EventRow]) -> None:
    """Write start, end and label, separated by tabs (Audacity manual, "Importing and Exporting Labels")."""
    out.writelines(f"{row.start_s:.6f}\t{row.end_s:.6f}\t{as_text(row.label)}\n" for row in rows)


def _write_raven(out: TextIO, files: Iterable[FileEvents], max_frequency_hz: float) -> None:
    """Write a selection table; its times count from the start of the first file (Raven Pro manual)."""
    lines = ["\t".join(_RAVEN_COLUMNS)]
    begin_s = 0.0
    for file in files:
        for row in file.rows:
            cells = [
                len(lines),
                "Spectrogram 1",
                1,
                f"{begin_s + row.start_s:.6f}",
                f"{begin_s + row.end_s:.6f}",
            ]
            cells += ["0.0", f"{max_frequency_hz:.1f}", as_text(row.file), f"{row.start_s:.6f}"]
            cells += [as_text(row.label), f"{row.score:.4f}"]
            lines.append("\t".join(map(str, cells)))
        begin_s += file.duration_s
    out.writelines(f"{line}\n" for line in lines)


_WRITERS: dict[str, Callable[[TextIO, Iterator[EventRow]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".txt": _write_audacity,
}


def _write_parquet(path: Path, files: Iterable[FileEvents]) -> None:
    pyarrow, parquet = require_pyarrow()
    rows = [asdict(row) for file in files for row in file.rows]
    types = [pyarrow.string(), pyarrow.float64(), pyarrow.float64(), pyarrow.string(), pyarrow.float64()]
    schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
