"""``m2d-hub demo``."""

from __future__ import annotations

import click

from m2d_hub.cli.options import device_option, model_option
from m2d_hub.pretrained.registry import DEFAULT_TAGGER

_LOOPBACK = "127.0.0.1"


@click.command()
@click.argument("folder", required=False, metavar="[FOLDER]")
@model_option(DEFAULT_TAGGER)
@device_option
@click.option(
    "--host",
    default=_LOOPBACK,
    show_default=True,
    help="Address to listen at; this one is your computer alone.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    help="Port to listen at.  [default: the first free one from 7860]",
)
def demo(folder: str | None, model: str, device: str | None, host: str, port: int | None) -> None:
    """Show in a browser what a model makes of a sound: dropped, or recorded.

    The page shows its spectrogram under a playhead, tags over time where the model has them, and compares two
    sounds. With FOLDER, whose sounds are embedded once and kept, it shows the most similar ones. It needs
    `pip install 'm2d-hub[demo]'` and no network.

    \b
    Examples:
      m2d-hub demo
      m2d-hub demo recordings/ --model m2d-as-0.7-as2m
    """
    from m2d_hub.corpus.library import open_library
    from m2d_hub.demo.page import serve
    from m2d_hub.hub import load_model

    loaded = load_model(model, device=device)
    library = open_library(folder, model, device) if folder else None
    for why in library.failed.values() if library else ():
        click.echo(f"Left out: {why}", err=True)
    page = serve(loaded, model, library, host=host, port=port, wait=False)
    click.echo(f"Open {page.local_url} in a browser; Ctrl-C ends the page.")
    if host != _LOOPBACK:
        click.echo("Whoever reaches this address can use the page.", err=True)
    page.block_thread()
