"""``m2d-hub map``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.cli.options import SOME_FAILED, device_option, json_option

if TYPE_CHECKING:
    from m2d_hub.corpus.sound_map import SoundMap

_SHOWN = 10  # files left out that are named here


@click.command("map")
@click.argument("source", metavar="SOURCE")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="HTML", help="Page to write.")
@click.option(
    "--model",
    metavar="NAME",
    help="What to embed a folder with.  [default: m2d-mini-tags; of embeddings the model that they name]",
)
@device_option
@click.option(
    "--projection",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    show_default=True,
    help="The two directions in which the sounds differ most, or t-SNE, which keeps neighbours together.",
)
@click.option(
    "--clusters", type=click.IntRange(min=1), metavar="N", help="[default: as many as fit the sounds best]"
)
@click.option(
    "--duplicate-score",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    metavar="S",
    help="Least cosine of two sounds that are told as the same.",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    metavar="N",
    help="Most sounds with a spectrogram, of 5 KB each.",
)
@json_option
def map_(source: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Draw the sounds of a folder as a map on one HTML page, with clusters and duplicates.

    SOURCE is a folder, which is embedded once and kept in the cache, or what `m2d-hub embed` wrote. Near each
    other are sounds that are alike to the model; pointing at one shows its name, spectrogram and tags. The
    page needs no network and no file beside it. Files that cannot be read are named and left out; the exit
    status is then 3. It needs `pip install 'm2d-hub[plots,sklearn]'`.

    \b
    Examples:
      m2d-hub map recordings/ --out map.html
      m2d-hub map embeddings.parquet --out map.html --projection tsne --clusters 8
    """
    from m2d_hub.corpus.draw_map import draw_map

    result = draw_map(source, out, progress=True, **settings)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        click.echo(f"Wrote {out}: {_summary(result)}.")
    for why in list(result.failed.values())[:_SHOWN]:
        click.echo(f"Left out: {why}", err=True)
    if len(result.failed) > _SHOWN:
        click.echo(f"Left out: {len(result.failed) - _SHOWN} more, named at the end of {out}.", err=True)
    if result.failed:
        sys.exit(SOME_FAILED)


def _summary(result: SoundMap) -> str:
    copies = sum(len(group.files) - 1 for group in result.duplicates)
    found = f"{copies} of them duplicates of another" if copies else "no duplicates"
    return f"{len(result.points)} sounds in {result.num_clusters} clusters, {found}"
