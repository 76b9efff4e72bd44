"""Options, output and error handling shared by the commands."""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.errors import ConfigError, M2DError
from m2d_hub.io import as_text, json_text

if TYPE_CHECKING:
    from m2d_hub.corpus.sources import Source

SOME_FAILED = 3  # exit status if some files could not be read
SECONDS = click.FloatRange(min=0, min_open=True)  # or infinity
_MAX_PRINTED = 10  # skipped files


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


def echo_skipped(failed: dict[str, str], exits: bool = True) -> None:
    """Print why files are skipped, ten at most, and end with status 3 if there are any."""
    for reason in list(failed.values())[:_MAX_PRINTED]:
        echo(f"Skipped: {reason}", err=True)
    if len(failed) > _MAX_PRINTED:
        echo(f"Skipped: {len(failed) - _MAX_PRINTED} more.", err=True)
    if failed and exits:
        raise SystemExit(SOME_FAILED)


def echo_json(value: Any) -> None:
    """Print a value as strict JSON in ASCII, with null for NaN and infinity."""
    click.echo(json.dumps(json.loads(json_text(value)), indent=2))


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
    type=SECONDS,
    metavar="S",
    help="Seconds encoded at once; inf for the length of each file.  [default: as pre-trained]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def find_files(paths: tuple[str, ...]) -> list[Source]:
    """Return the audio files that the arguments name, all of which must exist."""
    from m2d_hub.corpus.sources import find_sources

    for path in paths:
        if not ("://" in path or glob.has_magic(path) or os.path.lexists(path)):
            raise ConfigError(f"{path} does not exist; give a file, folder, pattern or CSV.")
    return find_sources(paths)
