"""The ``fuzz`` fixture, and the table of outcomes (written to the file ``FUZZ_TABLE``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .fuzzing import Outcome, run

_HEAD = """\
| reader of | files | read | refused, by error | slowest, CPU s | memory grown, GiB |
|---|---:|---:|---|---:|---:|
"""


@pytest.fixture(scope="session")
def outcomes():
    """Outcomes of all readers."""
    found: list[Outcome] = []
    yield found
    if table := os.environ.get("FUZZ_TABLE"):
        Path(table).write_text(_HEAD + "".join(outcome.row() + "\n" for outcome in found), encoding="utf-8")


@pytest.fixture
def fuzz(request, outcomes) -> Callable[[bytes, Callable[[bytes], object]], None]:
    """``fuzz(whole, read)``: read damaged copies of a file."""

    def fuzz(whole: bytes, read: Callable[[bytes], object]) -> None:
        name = request.node.name.removeprefix("test_").replace("_", " ").replace("[", ": ").rstrip("]")
        outcomes.append(Outcome(name))
        run(outcomes[-1], whole, read)

    return fuzz
