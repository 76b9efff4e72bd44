"""Figures of a benchmark: kept as JSON, and written as a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def keep(page: Path, found: dict[str, Any], report: Callable[[dict[str, Any]], str]) -> None:
    """Writes what was found beside what was kept of parts that were not run, and shows the page.

    Args:
        page: Markdown; the figures lie beside it.
        found: Figures by part.
        report: Makes the page of all of them.
    """
    page.parent.mkdir(exist_ok=True)
    record = page.with_suffix(".json")
    if record.is_file():
        found = json.loads(record.read_text()) | found
    page.write_text(report(found), encoding="utf-8")
    record.write_text(json.dumps(found, indent=2) + "\n")
    print(page.read_text(encoding="utf-8"))
