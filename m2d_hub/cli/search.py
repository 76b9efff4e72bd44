"""``m2d-hub search``."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from m2d_hub.cli.options import batch_size_option, device_option, json_option

if TYPE_CHECKING:
    from m2d_hub.corpus.search import Match


@click.command()
@click.argument("query", metavar="QUERY")
@click.argument("embeddings", metavar="EMBEDDINGS")
@click.option(
    "-k",
    "--top",
    "top_k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="K",
    help="Sounds to show.",
)
@click.option(
    "--model", metavar="NAME", help="What to embed QUERY with.  [default: the model that EMBEDDINGS name]"
)
@batch_size_option
@device_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Answer in CSV.")
def search(
    query: str,
    embeddings: str,
    top_k: int,
    model: str | None,
    batch_size: int,
    device: str | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Find the sounds most similar to a file among those that were embedded.

    EMBEDDINGS is what `m2d-hub embed` wrote, in any format. QUERY is embedded with the model that they name,
    and may be one of their files, which is then not shown. Where they hold frames, the part of each recording
    that is most like QUERY is told by its times. Scores are cosines, 1 for the same.

    \b
    Examples:
      m2d-hub embed recordings/ --out embeddings.parquet
      m2d-hub search dog.wav embeddings.parquet -k 5
      m2d-hub search dog.wav embeddings.parquet --json
    """
    from m2d_hub.corpus.search import search

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other; give one.")
    matches = search(query, embeddings, top_k=top_k, model=model, device=device, batch_size=batch_size)
    rows = [dataclasses.asdict(match) for match in matches]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([["file", "score", "start_s", "end_s"], *(row.values() for row in rows)])
    else:
        for match in matches:
            click.echo(f"{match.score:6.3f}  {match.file}{_part(match)}")


def _part(match: Match) -> str:
    return "" if match.start_s is None else f"  {match.start_s:.2f}-{match.end_s:.2f} s"
