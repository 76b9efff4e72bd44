"""Tables that users write: the one reader of CSV files, with the numbers of their rows."""

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
SHOWN = 5  # rows that a message names


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    number: int  # as a spreadsheet shows it: the header is row 1
    cells: dict[str, str]  # by column, without spaces around; "" where an optional column is missing


def read_table(
    path: Path | BinaryIO, columns: Sequence[str], optional: Sequence[str] = (), name: object = None
) -> list[Row]:
    """Reads a CSV file in UTF-8, separated by commas or, where its header has none, by semicolons.

    Blank rows are left out.

    Args:
        path: The file, or one that is open.
        columns: That it must have; others than these and ``optional`` are not read.
        optional: That it may have.
        name: Of an open one, for messages.

    Raises:
        ConfigError: The file is missing, no such table, or a row has another number of cells than the header.
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
        raise ConfigError(f"{table} has the column {repeated[0]!r} more than once; leave one.")
    filled = [(number, cells) for number, cells in enumerate(rows, start=2) if any(map(str.strip, cells))]
    if uneven := [number for number, cells in filled if len(cells) != len(names)]:
        raise ConfigError(
            f"{table}: {counted(uneven)} another number of cells than the header ({listed(uneven)}). A cell "
            "with a comma is written in quotes."
        )
    wanted = (*columns, *optional)
    places = {name: names.index(name) for name in wanted if name in names}
    return [
        Row(number, {name: cells[places[name]].strip() if name in places else "" for name in wanted})
        for number, cells in filled
    ]


def refuse_empty(path: object, rows: Sequence[Row], column: str) -> None:
    """Refuses rows without a value.

    Raises:
        ConfigError: The message names the rows.
    """
    if empty := [row.number for row in rows if not row.cells[column]]:
        raise ConfigError(f"{path}: {counted(empty)} no {column} ({listed(empty)}).")


def _rows(path: Path | BinaryIO, table: object, columns: Sequence[str]) -> list[list[str]]:
    kind, way_out = f"a CSV with the columns {', '.join(columns)}", "Save it as a CSV in UTF-8."
    door = (
        reading_file(path, kind, way_out, ConfigError)
        if isinstance(path, Path)
        else reading(table, kind, way_out, ConfigError)
    )
    with door:
        content = path.read_bytes() if isinstance(path, Path) else path.read()
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        header = lines.readline()
        lines.seek(0)
        delimiter = ";" if ";" in header and "," not in header else ","
        return list(csv.reader(lines, delimiter=delimiter))


def counted(rows: Sequence[object]) -> str:
    """Subject and verb of a complaint about rows."""
    return "1 row has" if len(rows) == 1 else f"{len(rows):,} rows have"


def listed(values: Sequence[object], noun: str = "row") -> str:
    """The first few values, and how many more there are."""
    return f"{noun}{'s' * (len(values) > 1)} {first_few(values, SHOWN)}"
