"""Commands that compare sounds: ``m2d-hub search``, ``map`` and ``demo``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli import options
from m2d_hub.pretrained.registry import DEFAULT_TAGGER

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.argument("query", required=False, metavar="[QUERY]")
@click.argument("embeddings", required=False, metavar="EMBEDDINGS")
@click.option("--text", metavar="WORDS", help="Description of the sound, in place of QUERY.")
@options.top_option("Number of results.", "-k", "top_k")
@click.option(
    "--model", metavar="NAME", help="Model to embed QUERY with.  [default: the model named in EMBEDDINGS]"
)
@options.batch_size_option
@options.device_option
@options.json_option
def search(
    query: str | None, embeddings: str | None, text: str | None, as_json: bool, **settings: Any
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
    matches = search(query, embeddings, text=text, **settings)
    if as_json:
        options.echo_json([dataclasses.asdict(match) for match in matches])
        return
    for match in matches:
        section = "" if match.start_s is None else f"  {match.start_s:.2f}-{match.end_s:.2f} s"
        options.echo(f"{match.score:6.3f}  {match.file}{section}")


@click.command("map")
@click.argument("source", metavar="SOURCE")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="HTML", help="File to write.")
@click.option("--model", metavar="NAME", help="Model.  [default: m2d-mini-tags, or that of the embeddings]")
@options.device_option
@click.option(
    "--projection", type=click.Choice(["pca", "tsne"]), default="pca", help="Principal components, or t-SNE."
)
@click.option("--clusters", type=click.IntRange(min=1), metavar="N", help="[default: the best fit]")
@click.option(
    "--duplicate-score", type=click.FloatRange(0, 1), default=0.95, help="Minimum cosine of duplicates."
)
@options.json_option
def map_(source: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Map the sounds of a folder on an HTML page.

    SOURCE is a folder, which is embedded once and kept in the cache, or an output of `m2d-hub embed`. Similar
    sounds are placed close together; hovering over one shows its name and tags. Clusters and
    duplicates are listed below. The page needs no network and no other files. Files that cannot be read are
    skipped; the exit status is then 3. Install with `pip install 'm2d-hub[map]'`.

    \b
    Examples:
      m2d-hub map recordings/ --out map.html
      m2d-hub map embeddings.parquet --out map.html --projection tsne --clusters 8
    """
    from m2d_hub.corpus.sound_map import draw_map

    result = draw_map(source, out, progress=True, **settings)
    if as_json:
        options.echo_json(dataclasses.asdict(result))
    else:
        num_copies = sum(len(group.files) - 1 for group in result.duplicates)
        options.echo(
            f"Wrote {out}: {len(result.points)} sounds in {result.num_clusters} clusters, "
            f"{num_copies} of them duplicates of another one."
        )
    options.echo_skipped(result.failed)


@click.command()
@click.argument("folder", required=False, metavar="[FOLDER]")
@options.model_option(DEFAULT_TAGGER)
@options.device_option
@click.option("--host", default=_LOOPBACK[0], help="Address to bind; the default is this computer only.")
@click.option("--port", type=click.IntRange(1, 65_535), default=7860, metavar="N", help="Port to bind.")
def demo(folder: str | None, model: str, device: str | None, host: str, port: int) -> None:
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
    from m2d_hub.demo.server import create_server, require_demo
    from m2d_hub.hub import load_model

    require_demo()
    library = open_index(folder, model, device) if folder else None
    loaded = load_model(model, device=device)
    if library is not None:
        options.echo_skipped(library.failed, exits=False)
    server = create_server(loaded, model, library, host, port)
    name = f"[{host}]" if ":" in host else host
    options.echo(f"Open http://{name}:{port}/ in a browser; press Ctrl-C to quit.")
    if host not in _LOOPBACK:
        options.echo("Anyone who can reach this address can use the page.", err=True)
    server.run()
