"""``m2d-hub export``."""

from __future__ import annotations

from pathlib import Path

import click

from m2d_hub.cli.options import echo, window_option


@click.command()
@click.argument("name")
@click.option(
    "--onnx", required=True, type=click.Path(path_type=Path), metavar="FILE", help="ONNX file to write."
)
@window_option
def export(name: str, onnx: Path, window: float | None) -> None:
    """Export a model to ONNX.

    The graph takes waveforms (batch, samples) and returns frames (batch, time, features), for any batch size
    and length. The spectrogram is part of it. Waveforms are mono, from -1 to 1, at the model's sample rate.
    NAME is a name from `m2d-hub list`, a folder or file on disk, or hf-hub:org/repo.

    \b
    Examples:
      m2d-hub export m2d-mini --onnx m2d-mini.onnx
      m2d-hub export m2d-as-0.7 --window 10 --onnx m2d-as.onnx
    """
    from m2d_hub.export import export_onnx
    from m2d_hub.hub import load_model

    model = load_model(name, device="cpu", window_s=window)
    export_onnx(model, onnx)
    echo(f"Wrote {onnx}: waveform at {model.sample_rate} Hz to frames of {model.frame_dim} features.")
