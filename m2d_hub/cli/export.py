"""``m2d-hub export``."""

from __future__ import annotations

from pathlib import Path

import click

from m2d_hub.cli.options import window_option


@click.command()
@click.argument("name")
@click.option(
    "--onnx", required=True, type=click.Path(path_type=Path), metavar="FILE", help="ONNX file to write."
)
@window_option
def export(name: str, onnx: Path, window: float | None) -> None:
    """Write a model as ONNX: waveform (batch, samples) in, frames (batch, time, features) out.

    The spectrogram is part of the graph; any batch size and length will do. NAME is one of `m2d-hub list`, a
    folder or file on disk, or hf-hub:org/repo. Waveforms are mono, in -1 to 1, at the model's sample rate.

    \b
    Examples:
      m2d-hub export m2d-mini --onnx m2d-mini.onnx
      m2d-hub export m2d-as-0.7 --window 10 --onnx m2d-as.onnx
    """
    from m2d_hub.export import export_onnx
    from m2d_hub.hub import load_model

    model = load_model(name, device="cpu", window_s=window)
    export_onnx(model, onnx)
    click.echo(f"Wrote {onnx}: waveform at {model.sample_rate} Hz to frames of {model.frame_dim} features.")
