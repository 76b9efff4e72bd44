"""Commands about models: ``m2d-hub list``, ``info``, ``download``, ``convert`` and ``export``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2d_hub.cli.options import echo, json_option, window_option
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import find_model, list_models

if TYPE_CHECKING:
    from m2d_hub.export import Output, Precision


@click.command("list")
@click.argument("pattern", default="*")
@json_option
def list_(pattern: str, as_json: bool) -> None:
    """List the models that load by name.

    \b
    Examples:
      m2d-hub list
      m2d-hub list 'm2d-as-*' --json
    """
    from m2d_hub.pretrained.source import model_info

    names = list_models(pattern)
    if as_json:
        click.echo(json.dumps(names))
        return
    if not names:
        raise ConfigError(f"no model name matches {pattern!r}; see m2d-hub list.")
    width = max(map(len, names))
    for name in names:
        info = model_info(name)
        where = "on disk" if info.on_disk else "to download"
        click.echo(f"{name:{width}}  {where:11}  {info.contents}; {info.license}")


@click.command()
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Show a model's licence, source, sizes and reported figures.

    \b
    Examples:
      m2d-hub info m2d-as-0.7
      m2d-hub info m2d-mini --json
    """
    from m2d_hub.pretrained.source import model_info

    known = model_info(name)
    values = {**dataclasses.asdict(known), "source": known.source}
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    for field, value in values.items():
        if value is not None:
            text = "x".join(map(str, value)) if isinstance(value, (tuple, list)) else value
            click.echo(f"{field:{max(map(len, values))}}  {text}")


@click.command()
@click.argument("name")
def download(name: str) -> None:
    """Download a model for use without a network; print its folder.

    NAME is one of `m2d-hub list`, or hf-hub:org/repo[@revision]. The cache is in $HF_HOME; M2D_HUB_MIRROR is
    the address of a mirror of the authors' release. An interrupted download is resumed.

    \b
    Examples:
      m2d-hub download m2d-as-0.7
      HF_HOME=/data/hf m2d-hub download hf-hub:org/repo@v1
    """
    from m2d_hub.pretrained.source import PREFIX, resolve

    if not name.startswith(PREFIX):
        info = find_model(name)
        click.echo(f"{name}: {info.license}; {info.source}", err=True)
    click.echo(resolve(name))


@click.command()
@click.argument("path", type=click.Path(exists=True), metavar="PATH")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
@click.option(
    "--sample-rate", type=click.IntRange(min=1), metavar="HZ", help="Needed if the file does not state it."
)
def convert(path: str, out: Path, sample_rate: int | None) -> None:
    """Convert published weights (.pth) into a folder of safetensors.

    DIR contains model.safetensors, config.json and a model card: everything for embedding and tagging. Parts
    that only pre-training uses (predictor, target encoder) are not converted.

    \b
    Examples:
      m2d-hub convert m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth --out m2d-0.7
      m2d-hub convert renamed.pth --sample-rate 16000 --out my-model
    """
    from m2d_hub.hub import load_model
    from m2d_hub.pretrained.source import as_argument

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not an empty folder; give another one.")
    model = load_model(path, device="cpu", sample_rate=sample_rate)
    model.save_pretrained(out)
    click.echo(f"Wrote {out}; load it with m2d_hub.load_model({as_argument(out)!r}).")


@click.command()
@click.argument("name")
@click.option(
    "--onnx", required=True, type=click.Path(path_type=Path), metavar="FILE", help="ONNX file to write."
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    type=click.Choice(["frames", "mask", "clip", "scores", "text_space"]),
    default=["frames"],
    help="Output of the graph; give the option once per output.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "int8"]), default="float32", help="Weights."
)
@window_option
def export(
    name: str, onnx: Path, outputs: tuple[Output, ...], dtype: Precision, window: float | None
) -> None:
    """Export a model to ONNX.

    The graph takes waveforms (batch, samples), for any batch size and length; the spectrogram is part of it.
    Waveforms are mono, from -1 to 1, at the model's sample rate. Unless frames are the only output, it also
    takes the lengths of the clips in samples (batch). NAME is a name from `m2d-hub list`, a folder or file on
    disk, or hf-hub:org/repo.

    \b
    Outputs:
      frames      (batch, time, features), zero after the end of each clip
      mask        (batch, time), true for audio
      clip        (batch, features)
      scores      (batch, classes), from 0 to 1; the labels are in the metadata
      text_space  (batch, features) in the space shared with text

    \b
    Examples:
      m2d-hub export m2d-mini --onnx m2d-mini.onnx
      m2d-hub export m2d-mini-tags --output clip --output scores --dtype int8 --onnx tagger.onnx
      m2d-hub export m2d-as-0.7 --window 10 --onnx m2d-as.onnx
    """
    from m2d_hub.export import export_onnx
    from m2d_hub.hub import load_model

    model = load_model(name, device="cpu", window_s=window)
    export_onnx(model, onnx, outputs, dtype)
    echo(f"Wrote {onnx}: waveform at {model.sample_rate} Hz to {', '.join(outputs)}.")
