"""Storage of benchmark figures: JSON, and a Markdown page made from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def keep(page: Path, found: dict[str, Any], report: Callable[[dict[str, Any]], str]) -> None:
    """Write new figures beside the stored figures of parts that were not run, and print the page.

    Args:
        page: Markdown file; the figures are stored beside it as JSON.
        found: Figures by part.
        report: Function that formats the page from all figures.
    """
    page.parent.mkdir(exist_ok=True)
    record = page.with_suffix(".json")
    if record.is_file():
        found = json.loads(record.read_text()) | found
    page.write_text(report(found), encoding="utf-8")
    record.write_text(json.dumps(found, indent=2) + "\n")
    print(page.read_text(encoding="utf-8"))
