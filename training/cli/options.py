"""What the commands share: how errors are told, where a run's log goes, and how the answer is written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def is_first_process() -> bool:
    """Whether this process is the one that talks, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Logs to the terminal, and of the first process to a file too; the others only tell of warnings."""
    is_first = is_first_process()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(package) for package in ("m2d_training", "m2d_hub")]
    try:
        for package in loggers:
            package.setLevel(logging.INFO if is_first else logging.WARNING)
            for handler in handlers:
                package.addHandler(handler)
        yield
    finally:
        for handler in handlers:
            for package in loggers:
                package.removeHandler(handler)
            handler.close()


def answer(values: dict[str, object], as_json: bool, text: str) -> str:
    """What a command prints at its end: a sentence, or JSON."""
    return json.dumps(values) if as_json else text
