"""CSV files, read with the numbers of their rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from m2d_hub.errors import ConfigError, first_few
from m2d_hub.io import reading, reading_file

PART_COLUMNS = ("start_s", "end_s")  # seconds; an empty cell: from the beginning, to the end
SHOWN = 5  # rows that a message lists


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    number: int  # as a spreadsheet shows it: the header is row 1
    cells: dict[str, str]  # by column, without spaces around; "" where an optional column is missing


def read_table(
    path: Path | BinaryIO, columns: Sequence[str], optional: Sequence[str] = (), name: object = None
) -> list[Row]:
    """Read a CSV file in UTF-8, separated by commas or, if its header has none, by semicolons.

    Blank rows are skipped.

    Args:
        path: The path, or an open file.
        columns: Required columns; other columns than these and ``optional`` are ignored.
        optional: Columns that may be missing.
        name: Name of an open file, for messages.

    Raises:
        ConfigError: The file is missing or malformed, or a row has more or fewer cells than the header.
    """
    table = path if name is None else name
    header, *rows = _rows(path, table, columns) or [[]]
    names = [name.strip() for name in header]
    if missing := [name for name in columns if name not in names]:
        raise ConfigError(
            f"{table} has no column {' and no column '.join(map(repr, missing))}; its columns: "
            f"{', '.join(names) or 'none'}."
        )
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise ConfigError(f"{table} has the column {repeated[0]!r} more than once; keep one.")
    filled = [(number, cells) for number, cells in enumerate(rows, start=2) if any(map(str.strip, cells))]
    if uneven := [number for number, cells in filled if len(cells) != len(names)]:
        raise ConfigError(
            f"{table}: {counted(uneven)} another number of cells than the header ({listed(uneven)}). Quote "
            "cells that contain commas."
        )
    wanted = (*columns, *optional)
    positions = {name: names.index(name) for name in wanted if name in names}
    return [
        Row(number, {name: cells[positions[name]].strip() if name in positions else "" for name in wanted})
        for number, cells in filled
    ]


def refuse_empty(path: object, rows: Sequence[Row], column: str) -> None:
    """Refuse rows without a value.

    Raises:
        ConfigError: The message names the rows.
    """
    if empty := [row.number for row in rows if not row.cells[column]]:
        raise ConfigError(f"{path}: {counted(empty)} no {column} ({listed(empty)}).")


def _rows(path: Path | BinaryIO, table: object, columns: Sequence[str]) -> list[list[str]]:
    kind, hint = f"a CSV with the columns {', '.join(columns)}", "Save it as a CSV in UTF-8."
    context = (
        reading_file(path, kind, hint, ConfigError)
        if isinstance(path, Path)
        else reading(table, kind, hint, ConfigError)
    )
    with context:
        content = path.read_bytes() if isinstance(path, Path) else path.read()
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        header = lines.readline()
        lines.seek(0)
        delimiter = ";" if ";" in header and "," not in header else ","
        return list(csv.reader(lines, delimiter=delimiter))


def counted(rows: Sequence[object]) -> str:
    """Return subject and verb of a message about rows."""
    return "1 row has" if len(rows) == 1 else f"{len(rows):,} rows have"


def listed(values: Sequence[object], noun: str = "row") -> str:
    """Return the first few values and the number of others."""
    return f"{noun}{'s' * (len(values) > 1)} {first_few(values, SHOWN)}"
