"""``m2d-hub embed``."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click

from m2d_hub.cli import options
from m2d_hub.pretrained.registry import DEFAULT_MODEL


@click.command()
@options.paths_argument
@options.model_option(DEFAULT_MODEL)
@click.option("--out", required=True, metavar="OUT", help="Output file, folder or URL, see above.")
@click.option(
    "--kind",
    type=click.Choice(["clip", "frames", "layers"]),
    default="clip",
    show_default=True,
    help="One embedding per file, per time frame, or per layer and time frame.",
)
@click.option("--segment", "segment_s", type=float, metavar="S", help="One embedding per segment this long.")
@click.option(
    "--hop", "hop_s", type=float, metavar="S", help="Seconds between segments.  [default: --segment]"
)
@click.option("--text-space", is_flag=True, help="Embed in the space shared with text (m2d-clap-2025).")
@options.batch_size_option
@options.num_workers_option
@options.device_option
@options.window_option
@options.json_option
def embed(paths: tuple[str, ...], out: str, window: float | None, as_json: bool, **settings: Any) -> None:
    """Embed audio files into one file or folder.

    PATH is a file, a folder (at any depth), a quoted pattern, or a CSV with a `file` column. Each audio file
    in a tar shard (WebDataset) is embedded under its name in the shard. URLs of object stores
    (s3://bucket/prefix) can be read, and written if OUT is .parquet or .dataset (pip install 'm2d-hub[s3]').

    \b
    The suffix of OUT selects the format:
      .parquet      columns file, embedding; with --segment also start_s, end_s, one row per segment; with
                    --kind frames or layers also num_frames, timestamps_s
      .dataset      a folder of such Parquet files, which other programs read as one table
      .npz          arrays file (N), embedding (N, D), and start_s, end_s (N) of segments; frames and layers:
                    embedding/FILE, timestamps_s/FILE
      .safetensors  the same; the names are JSON in the metadata's "file"
      none          a folder of FILE.npy, and index.csv with the array of each file
    float32: (D) for a clip, (frames, D) for frames, (layers, frames, D) for layers; times are in seconds.

    Files that cannot be read are listed in OUT.errors.csv and do not stop the rest; the exit status is then
    3. Run the same command again to resume an interrupted job: finished files are kept (in OUT.parts until
    the end), failed files are tried again, and new or changed files are embedded.

    \b
    Examples:
      m2d-hub embed dog.wav --out dog.npz
      m2d-hub embed recordings/ --model m2d-as-0.7 --out embeddings.parquet
      m2d-hub embed nights/ --segment 3 --hop 1 --out segments.parquet
      m2d-hub embed s3://bucket/recordings --out s3://bucket/embeddings.parquet
      m2d-hub embed list.csv --kind frames --window 10 --device cuda --out frames/
    """
    from m2d_hub.corpus.embed_files import embed_files

    sources = options.find_files(paths)
    summary = embed_files(sources, out, window_s=window, progress=True, **settings)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary)))
    else:
        there = f" (already there: {summary.already_there})" if summary.already_there else ""
        click.echo(f"Files embedded into {out}: {summary.embedded}{there}.")
    if summary.failed:
        click.echo(f"Files that could not be read: {summary.failed}; see {summary.errors_file}.", err=True)
        sys.exit(options.SOME_FAILED)
