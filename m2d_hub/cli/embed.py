"""``m2d-hub embed``."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click

from m2d_hub.cli.options import (
    SOME_FAILED,
    batch_size_option,
    device_option,
    find_files,
    json_option,
    model_option,
    num_workers_option,
    paths_argument,
    window_option,
    wrong_usage,
)
from m2d_hub.pretrained.registry import DEFAULT_MODEL


@click.command()
@paths_argument
@model_option(DEFAULT_MODEL)
@click.option("--out", required=True, metavar="OUT", help="Where to, see above.")
@click.option(
    "--kind",
    type=click.Choice(["clip", "frames", "layers"]),
    default="clip",
    show_default=True,
    help="One embedding a file, one a time frame, or those of every layer.",
)
@batch_size_option
@num_workers_option
@device_option
@window_option
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This process, or the workers of a Ray cluster, which write into a .dataset themselves and send "
    "other results here (pip install 'm2d-hub[ray]').",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="With --engine ray."
)
@json_option
def embed(
    paths: tuple[str, ...],
    model: str,
    out: str,
    kind: Any,
    batch_size: int,
    num_workers: int | None,
    device: str | None,
    window: float | None,
    engine: str,
    workers: int,
    as_json: bool,
) -> None:
    """Embed audio files: files, folders (at any depth), quoted patterns, or a CSV with a `file` column.

    Of tar shards (WebDataset) each audio file is one, under its name in the shard. URLs of object stores
    (s3://bucket/prefix) are read, and written where OUT is .parquet or .dataset (pip install 'm2d-hub[s3]').

    \b
    The suffix of OUT says the format:
      .parquet      a row a file: file, embedding; but for clips also num_frames, timestamps_s
      .dataset      a folder of such Parquet files, with _index.parquet (file, part, row)
      .npz          clips: arrays file (N) and embedding (N, D); else embedding/FILE, timestamps_s/FILE
      .safetensors  the same; the names are JSON in the metadata's "file"
      none          a folder of FILE.npy, and index.csv that says which is whose
    float32: (D) a clip, (frames, D) for frames, (layers, frames, D) for layers; times are in seconds.

    Files that cannot be read are listed in OUT.errors.csv and do not stop the rest; the exit status is then
    3. Run the same command again and it goes on where it was stopped: what is done is kept (in OUT.parts
    until the end), what failed is tried again, and new files are added.

    \b
    Examples:
      m2d-hub embed dog.wav --out dog.npz
      m2d-hub embed recordings/ --model m2d-as-0.7 --out embeddings.parquet
      m2d-hub embed list.csv --engine ray --workers 8 --out embeddings.dataset
      m2d-hub embed s3://bucket/recordings --out s3://bucket/embeddings.parquet
      m2d-hub embed list.csv --kind frames --window 10 --device cuda --out frames/
    """
    from m2d_hub.corpus.embed_files import embed_files
    from m2d_hub.corpus.outputs import check_suffix
    from m2d_hub.corpus.stores import place_of

    sources = find_files(paths)
    with wrong_usage():
        check_suffix(place_of(out))
    ray_engine = None
    if engine == "ray":
        from m2d_hub.corpus.ray_engine import RayEngine

        ray_engine = RayEngine(workers)
    summary = embed_files(
        sources,
        out,
        model=model,
        kind=kind,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        window_s=window,
        progress=True,
        engine=ray_engine,
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary)))
    else:
        there = f" (already there: {summary.already_there})" if summary.already_there else ""
        click.echo(f"Files embedded into {out}: {summary.embedded}{there}.")
    if summary.failed:
        click.echo(f"Files that could not be read: {summary.failed}; see {summary.errors_file}.", err=True)
        sys.exit(SOME_FAILED)
