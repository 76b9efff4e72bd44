"""``m2d-hub plot``."""

from __future__ import annotations

from pathlib import Path

import click

from m2d_hub.cli.options import (
    batch_size_option,
    device_option,
    model_option,
    window_option,
)
from m2d_hub.pretrained.registry import DEFAULT_MODEL


@click.command()
@click.argument("path", metavar="PATH")
@model_option(DEFAULT_MODEL)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="PNG", help="Picture to write."
)
@batch_size_option
@device_option
@window_option
def plot(path: str, model: str, out: Path, batch_size: int, device: str | None, window: float | None) -> None:
    """Draw a clip's spectrogram over the similarity of its frames, and a tagger's tags over time.

    \b
    Example:
      m2d-hub plot dog.wav --out dog.png
    """
    from m2d_hub.hub import load_model
    from m2d_hub.plots import plot_clip

    plot_clip(load_model(model, device=device, window_s=window), path, out, batch_size=batch_size)
    click.echo(f"Wrote {out}.")
