"""``m2d-hub search``."""

from __future__ import annotations

import dataclasses

import click

from m2d_hub.cli.options import batch_size_option, device_option, echo, echo_json, json_option, top_option


@click.command()
@click.argument("query", metavar="QUERY")
@click.argument("embeddings", metavar="EMBEDDINGS")
@top_option("Number of results.", "-k", "top_k")
@click.option(
    "--model", metavar="NAME", help="Model to embed QUERY with.  [default: the model named in EMBEDDINGS]"
)
@batch_size_option
@device_option
@json_option
def search(
    query: str,
    embeddings: str,
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
    """
    from m2d_hub.corpus.search import search

    matches = search(query, embeddings, top_k=top_k, model=model, device=device, batch_size=batch_size)
    if as_json:
        echo_json([dataclasses.asdict(match) for match in matches])
        return
    for match in matches:
        section = "" if match.start_s is None else f"  {match.start_s:.2f}-{match.end_s:.2f} s"
        echo(f"{match.score:6.3f}  {match.file}{section}")
