"""Options, output and error handling shared by the commands."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.errors import ConfigError, M2DError
from m2d_hub.io import as_text, json_text

if TYPE_CHECKING:
    from m2d_hub.corpus.sources import Source

SOME_FAILED = 3  # exit status if some files could not be read


class Group(click.Group):
    """Print errors of the package and of disks as one line on standard error, with exit status 1.

    Messages contain names from files, so control characters are escaped.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = as_text(error.message)  # type: ignore[misc]
            raise
        except M2DError as error:
            raise click.ClickException(as_text(str(error))) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            path = "" if error.filename is None else f": {error.filename}"
            raise click.ClickException(as_text(f"{error.strerror or error}{path}")) from error
        except MemoryError as error:
            raise click.ClickException("This machine has too little memory for it.") from error


class EscapedFormatter(logging.Formatter):
    """Format log records on one line each, with control characters of names escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return as_text(super().formatMessage(record))


def echo(text: str, err: bool = False) -> None:
    """Print a line, with control characters of names escaped."""
    click.echo(as_text(text), err=err)


def echo_json(value: Any) -> None:
    """Print a value as strict JSON in ASCII, with null for NaN and infinity."""
    click.echo(json.dumps(json.loads(json_text(value)), indent=2))


class Seconds(click.ParamType):
    """A positive number, or infinity."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            self.fail(f"{value!r} is not a positive number of seconds or 'inf'.", param, ctx)
        return seconds


def model_option(default: str | None = None) -> Any:
    """Return the option ``--model``, which is required unless it has a default."""
    help_text = (
        "Name from `m2d-hub list`, folder or file, or hf-hub:org/repo; random:NAME for random weights."
    )
    return click.option("--model", metavar="NAME", help=help_text, required=default is None, default=default)


def top_option(help_text: str, *names: str) -> Any:
    """Return the option ``--top K``, with further names."""
    return click.option("--top", *names, type=click.IntRange(min=1), default=5, metavar="K", help=help_text)


paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
device_option = click.option(
    "--device", metavar="D", help="cpu, cuda, cuda:1, mps, …  [default: the best available]"
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    metavar="N",
    help="Windows encoded at once; affects speed and memory, not results.",
)
num_workers_option = click.option(
    "--num-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads that read files.  [default: CPU cores - 1]",
)
window_option = click.option(
    "--window",
    type=Seconds(),
    metavar="S",
    help="Seconds encoded at once; inf for the length of each file.  [default: as pre-trained]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def wrong_usage() -> Iterator[None]:
    """Report invalid arguments as click usage errors (exit status 2)."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def find_files(paths: tuple[str, ...]) -> list[Source]:
    """Return the audio files that the arguments name."""
    from m2d_hub.corpus.sources import find_sources

    with wrong_usage():
        return find_sources(paths)
