"""What the commands share: where a run's log goes, and how the answer is written."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import SOME_FAILED
from m2d_hub.errors import M2DError
from m2d_hub.io import json_text

from ..runs.devices import is_first_process
from ..runs.folder import make_folder

compile_option = click.option(
    "--compile",
    is_flag=True,
    help="The encoder's blocks through torch.compile: faster on GPUs after some minutes; --set compile=true.",
)

sweep_option = click.option(
    "--sweep", metavar="FIELD=VALUE,VALUE", help="A run for each value of a field, in OUT/FIELD-VALUE."
)


def runs_of(
    out: Path, sweep: str | None, parse: Callable[[str], dict[str, dict[str, Any]]]
) -> dict[Path, dict[str, Any]]:
    """Folders of a command's runs, each with what it has otherwise.

    Args:
        out: Of the only run, or of those of a sweep.
        sweep: As it was given.
        parse: What each run of a sweep has otherwise, by the name of its folder.
    """
    return {out: {}} if sweep is None else {out / name: fields for name, fields in parse(sweep).items()}


class LogFile(logging.FileHandler):
    """A file that a full disk makes incomplete; it neither ends the run nor hides the error that does."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Tells of what went wrong, unless it is the disk."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Closes the file, even if what is left cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Logs to the terminal, and of the first process to a file too; the others only tell of warnings.

    An error that ends the command, which the terminal shows anyway, is in the file as well.
    """
    is_first = is_first_process()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_first:
        make_folder(path.parent)
        handlers.append(LogFile(path, encoding="utf-8"))
    loggers = [logging.getLogger(package) for package in ("m2d_training", "m2d_hub")]
    try:
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for package in loggers:
            package.setLevel(logging.INFO if is_first else logging.WARNING)
            for handler in handlers:
                package.addHandler(handler)
        yield
    except BaseException as error:
        if is_first and not isinstance(error, SystemExit):
            handlers[-1].handle(_end_of(error))
        raise
    finally:
        for handler in handlers:
            for package in loggers:
                package.removeHandler(handler)
            handler.close()


def _end_of(error: BaseException) -> logging.LogRecord:
    """The log's last line; where the reason is none of the package's own, with the traceback."""
    trace = None if isinstance(error, M2DError) else (type(error), error, error.__traceback__)
    text = str(error) or type(error).__name__
    return logging.LogRecord(__name__, logging.ERROR, __file__, 0, "Ended: %s", (text,), trace)


def exit_status(left_out: int) -> None:
    """Ends a command as all do: with a status of its own where clips were left out."""
    if left_out:
        sys.exit(SOME_FAILED)


def answer(values: dict[str, object], as_json: bool, text: str) -> str:
    """What a command prints at its end: a sentence, or JSON."""
    return json_text(values) if as_json else text
