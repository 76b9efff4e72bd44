"""Options that the commands share, how files are given, and how errors are told."""

from __future__ import annotations

import contextlib
import errno
import math
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.errors import ConfigError, M2DError

if TYPE_CHECKING:
    from m2d_hub.corpus.sources import Source

SOME_FAILED = 3  # exit status where files could not be read


class Group(click.Group):
    """Turns the package's errors, and those of disks, into a line on the error stream and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except M2DError as error:
            raise click.ClickException(self._in_options(ctx, str(error))) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(re.sub(r"^\[Errno \d+\] ", "", str(error))) from error

    def _in_options(self, ctx: click.Context, message: str) -> str:
        """A message of the package, which names arguments (batch_size), in the command's own words."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        for option in command.params if command else []:
            if option.name and "_" in option.name:
                message = re.sub(rf"\b{option.name}\b(?!=)", max(option.opts, key=len), message)
        return message


class Seconds(click.ParamType):
    """A positive number, infinity included."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            self.fail(f"{value!r} is not a positive number of seconds, nor 'inf'.", param, ctx)
        return seconds


def model_option(default: str | None = None) -> Any:
    """``--model`` with a default, or to be given."""
    help_text = (
        "Name of `m2d-hub list`, a folder or file on disk, or hf-hub:org/repo; random:NAME is untrained."
    )
    given = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option("--model", metavar="NAME", help=help_text, **given)


paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
device_option = click.option(
    "--device", metavar="D", help="cpu, cuda, cuda:1, mps …  [default: the best there is]"
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Windows encoded at once; changes speed and memory, never the numbers.",
)
num_workers_option = click.option(
    "--num-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads that read files while the model works on those before.  [default: one a core, less one]",
)
window_option = click.option(
    "--window",
    type=Seconds(),
    metavar="S",
    help="Seconds encoded as a whole; inf for each file's own length.  [default: as pre-trained]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


@contextlib.contextmanager
def wrong_usage() -> Iterator[None]:
    """Tells what is wrong with arguments as click tells it: with the usage and exit status 2."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def find_files(paths: tuple[str, ...]) -> list[Source]:
    """The audio files that the arguments mean."""
    from m2d_hub.corpus.sources import find_sources

    with wrong_usage():
        return find_sources(paths)


def with_progress(sources: list[Source]) -> Any:
    """The files one by one, with a bar where somebody watches."""
    from tqdm import tqdm

    # No stream at all, as in programs without a console, is nobody who watches.
    return tqdm(sources, unit="file", disable=True if sys.stderr is None else None)
