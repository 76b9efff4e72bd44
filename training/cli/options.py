"""Parts that the commands share: options, log files and answers."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from m2d_hub.cli.options import SOME_FAILED, EscapedFormatter
from m2d_hub.errors import M2DError
from m2d_hub.io import json_text

from ..runs.devices import is_first_process
from ..runs.folder import make_folder

compile_option = click.option(
    "--compile",
    is_flag=True,
    help="The encoder's blocks through torch.compile: faster on GPUs after some minutes; --set compile=true.",
)


class LogFile(logging.FileHandler):
    """A log file whose disk may be full: that neither ends the run nor hides the error that does."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report an error, unless the disk is full."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, even if the rest cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log to the terminal and, in the first process, to a file; other processes only log warnings.

    An error that ends the command is logged to the file too.
    """
    is_first = is_first_process()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_first:
        make_folder(path.parent)
        handlers.append(LogFile(path, encoding="utf-8"))
    loggers = [logging.getLogger(package) for package in ("m2d_training", "m2d_hub")]
    try:
        for handler in handlers:
            handler.setFormatter(EscapedFormatter("%(asctime)s %(levelname)s %(message)s"))
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
    """The last line of the log, with the traceback unless it is an error of this package."""
    trace = None if isinstance(error, M2DError) else (type(error), error, error.__traceback__)
    text = str(error) or type(error).__name__
    return logging.LogRecord(__name__, logging.ERROR, __file__, 0, "Ended: %s", (text,), trace)


def exit_status(skipped: int) -> None:
    """End a command with exit status 3 if clips were skipped."""
    if skipped:
        sys.exit(SOME_FAILED)


def answer(values: dict[str, object], as_json: bool, text: str) -> str:
    """Return what a command prints at its end: text or JSON."""
    return json_text(values) if as_json else text
