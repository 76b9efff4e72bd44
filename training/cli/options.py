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

from ..runs.folder import is_first_process, make_folder

COUNT = click.IntRange(min=1)
PATH = click.Path(path_type=Path)
out_option = click.option("--out", required=True, type=PATH, help="Output folder; resumed.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the preset."
)
compile_option = click.option(
    "--compile",
    is_flag=True,
    help="The encoder's blocks through torch.compile: faster on GPUs after some minutes; --set compile=true.",
)


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log to the terminal and, in the first process, to a file; other processes only log warnings.

    An error that ends the command is logged to the file too. A full disk neither ends the command nor hides
    that error.
    """
    is_first = is_first_process()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if is_first:
        make_folder(path.parent)
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
        handlers[-1].handleError = lambda record: None  # type: ignore[method-assign]
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
            trace = None if isinstance(error, M2DError) else (type(error), error, error.__traceback__)
            text = str(error) or type(error).__name__
            last = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "Ended: %s", (text,), trace)
            handlers[-1].handle(last)
        raise
    finally:
        for handler in handlers:
            for package in loggers:
                package.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


def answer(values: dict[str, object], as_json: bool, text: str, skipped: int = 0) -> None:
    """Print the result as text or JSON in the first process; end with exit status 3 if clips were skipped."""
    if is_first_process():
        click.echo(json_text(values) if as_json else text)
    if skipped:
        sys.exit(SOME_FAILED)
