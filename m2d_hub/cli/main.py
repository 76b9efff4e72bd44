"""The console script ``m2d-hub``. Commands import torch only when they run."""

from __future__ import annotations

import io
import logging
import sys

import click

from m2d_hub.cli.detect import detect
from m2d_hub.cli.embed import embed
from m2d_hub.cli.models import convert, download, export, info, list_
from m2d_hub.cli.options import EscapedFormatter, Group
from m2d_hub.cli.search import demo, map_, search
from m2d_hub.cli.stream import stream
from m2d_hub.cli.tag import plot, tag

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(package_name="m2d-hub", prog_name="m2d-hub")
def main() -> None:
    """Masked Modeling Duo (M2D): embeddings and tags of audio files.

    \b
    Examples:
      m2d-hub embed recordings/ --out embeddings.parquet
      m2d-hub search dog.wav embeddings.parquet
      m2d-hub list 'm2d-as-*'
    """
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):  # a pipe's encoding may not have all characters of names
            file.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(EscapedFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


for command in (embed, search, map_, tag, detect, stream, list_, info, download, convert, export, plot, demo):
    main.add_command(command)
