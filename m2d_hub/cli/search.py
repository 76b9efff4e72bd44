"""Commands that compare sounds: ``m2d-hub search``, ``map`` and ``demo``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import (
    SOME_FAILED,
    batch_size_option,
    device_option,
    echo,
    echo_json,
    json_option,
    model_option,
    top_option,
)
from m2d_hub.pretrained.registry import DEFAULT_TAGGER

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_PRINTED = 10  # skipped files


@click.command()
@click.argument("query", required=False, metavar="[QUERY]")
@click.argument("embeddings", required=False, metavar="EMBEDDINGS")
@click.option("--text", metavar="WORDS", help="Description of the sound, in place of QUERY.")
@top_option("Number of results.", "-k", "top_k")
@click.option(
    "--model", metavar="NAME", help="Model to embed QUERY with.  [default: the model named in EMBEDDINGS]"
)
@batch_size_option
@device_option
@json_option
def search(
    query: str | None,
    embeddings: str | None,
    text: str | None,
    top_k: int,
    model: str | None,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Find the embedded sounds most similar to a file.

    EMBEDDINGS is an output of `m2d-hub embed`, in any format. QUERY may be one of its files, which is then
    not among the results. If EMBEDDINGS holds frames, the most similar section of each recording is reported
    with start and end. Scores are cosine similarities; 1 is equal.

    \b
    Examples:
      m2d-hub embed recordings/ --out embeddings.parquet
      m2d-hub search dog.wav embeddings.parquet -k 5
      m2d-hub search dog.wav embeddings.parquet --json
      m2d-hub embed nights/ --model m2d-clap-2025 --segment 3 --text-space --out words.parquet
      m2d-hub search --text "glass breaking" words.parquet
    """
    from m2d_hub.corpus.search import search

    if text is not None and embeddings is None:
        query, embeddings = None, query
    if embeddings is None or (query is None) == (text is None):
        raise click.UsageError("Give QUERY and EMBEDDINGS, or --text WORDS and EMBEDDINGS.")
    matches = search(
        query, embeddings, text=text, top_k=top_k, model=model, device=device, batch_size=batch_size
    )
    if as_json:
        echo_json([dataclasses.asdict(match) for match in matches])
        return
    for match in matches:
        section = "" if match.start_s is None else f"  {match.start_s:.2f}-{match.end_s:.2f} s"
        echo(f"{match.score:6.3f}  {match.file}{section}")


@click.command("map")
@click.argument("source", metavar="SOURCE")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="HTML", help="File to write.")
@click.option("--model", metavar="NAME", help="Model.  [default: m2d-mini-tags, or that of the embeddings]")
@device_option
@click.option(
    "--projection", type=click.Choice(["pca", "tsne"]), default="pca", help="Principal components, or t-SNE."
)
@click.option("--clusters", type=click.IntRange(min=1), metavar="N", help="[default: the best fit]")
@click.option(
    "--duplicate-score", type=click.FloatRange(0, 1), default=0.95, help="Minimum cosine of duplicates."
)
@click.option("--thumbnails", type=click.IntRange(min=0), default=500, help="Maximum number of spectrograms.")
@json_option
def map_(source: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Map the sounds of a folder on an HTML page.

    SOURCE is a folder, which is embedded once and kept in the cache, or an output of `m2d-hub embed`. Similar
    sounds are placed close together; hovering over one shows its name, tags and spectrogram. Clusters and
    duplicates are listed below. The page needs no network and no other files. Files that cannot be read are
    skipped; the exit status is then 3. Install with `pip install 'm2d-hub[map]'`.

    \b
    Examples:
      m2d-hub map recordings/ --out map.html
      m2d-hub map embeddings.parquet --out map.html --projection tsne --clusters 8
    """
    from m2d_hub.corpus.draw_map import draw_map

    result = draw_map(source, out, progress=True, **settings)
    if as_json:
        echo_json(dataclasses.asdict(result))
    else:
        num_copies = sum(len(group.files) - 1 for group in result.duplicates)
        echo(
            f"Wrote {out}: {len(result.points)} sounds in {result.num_clusters} clusters, "
            f"{num_copies} of them duplicates of another one."
        )
    _print_skipped(result.failed, f"; all are listed in {out}")
    if result.failed:
        sys.exit(SOME_FAILED)


@click.command()
@click.argument("folder", required=False, metavar="[FOLDER]")
@model_option(DEFAULT_TAGGER)
@device_option
@click.option("--host", default=_LOOPBACK[0], help="Address to bind; the default is this computer only.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), metavar="N", help="Port to bind.  [default: from 7860]"
)
def demo(folder: str | None, model: str, device: str | None, host: str, port: int | None) -> None:
    """Open a page to try a model on your own sounds.

    The page shows the spectrogram, tags and frame similarity of a sound that you upload or record, and
    compares two sounds. With FOLDER, which is embedded once and kept in the cache, it also shows the most
    similar sounds. Install with `pip install 'm2d-hub[demo]'`; no network is needed.

    \b
    Examples:
      m2d-hub demo
      m2d-hub demo recordings/ --model m2d-as-0.7-as2m
    """
    from m2d_hub.corpus.index import open_index
    from m2d_hub.demo.server import create_server, require_demo, url_of
    from m2d_hub.hub import load_model

    require_demo()
    loaded = load_model(model, device=device)
    library = open_index(folder, model, device) if folder else None
    if library is not None:
        _print_skipped(library.failed)
    server, listener = create_server(loaded, model, library, host=host, port=port)
    echo(f"Open {url_of(listener)} in a browser; press Ctrl-C to quit.")
    if host not in _LOOPBACK:
        echo("Anyone who can reach this address can use the page.", err=True)
    server.run(sockets=[listener])


def _print_skipped(failed: dict[str, str], where: str = "") -> None:
    for reason in list(failed.values())[:_MAX_PRINTED]:
        echo(f"Skipped: {reason}", err=True)
    if len(failed) > _MAX_PRINTED:
        echo(f"Skipped: {len(failed) - _MAX_PRINTED} more{where}.", err=True)
