"""``m2d-hub detect``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from m2d_hub.cli import options
from m2d_hub.pretrained.registry import DEFAULT_TAGGER


@click.command()
@options.paths_argument
@options.model_option(DEFAULT_TAGGER)
@click.option("--out", required=True, metavar="TABLE", help="File to write; its suffix selects the format.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, help="Score that an event reaches.")
@click.option(
    "--class-threshold",
    "by_class",
    multiple=True,
    metavar="LABEL=SCORE",
    help="Detect only this class, with its own threshold; give the option once per class.",
)
@click.option(
    "--offset-threshold", type=click.FloatRange(0, 1), help="Score of all its frames.  [default: half]"
)
@click.option(
    "--median", "median_s", type=float, default=0.0, metavar="S", help="Length of the median filter."
)
@click.option("--max-gap", "max_gap_s", type=float, default=0.0, metavar="S", help="Join events this close.")
@click.option(
    "--min-duration", "min_duration_s", type=float, default=0.0, metavar="S", help="Shortest event."
)
@options.batch_size_option
@options.device_option
@options.json_option
def detect(
    paths: tuple[str, ...], out: str, by_class: tuple[str, ...], as_json: bool, **settings: Any
) -> None:
    """Detect events in audio files: labels with start and end.

    \b
    The suffix of TABLE selects the format:
      .csv, .jsonl, .parquet  columns file, start_s, end_s, label, score
      .selections.txt         Raven selection table
      .txt                    Audacity labels, for one recording

    Recordings of any length are read in blocks. Run the same command again to resume an interrupted job.
    Files that cannot be read are reported and do not stop the rest; the exit status is then 3. Windows below
    -60 dBFS have no events.

    \b
    Examples:
      m2d-hub detect recordings/ --out events.csv
      m2d-hub detect night.flac --class-threshold Bird=0.4 --max-gap 1 --out night.selections.txt
    """
    from m2d_hub.corpus.detect_files import detect_files

    sources = options.find_files(paths)
    if by_class:
        settings["threshold"] = dict(map(_class_threshold, by_class))
    summary = detect_files(sources, out, progress=True, **settings)
    if as_json:
        options.echo_json(dataclasses.asdict(summary))
    else:
        options.echo(f"Wrote {out}: {summary.num_events} events in {summary.num_files} files.")
    options.echo_skipped(summary.failed)


def _class_threshold(text: str) -> tuple[str, float]:
    label, _, score = text.rpartition("=")
    try:
        return label, float(score)
    except ValueError as error:
        raise click.UsageError(f"--class-threshold must be LABEL=SCORE, got {text!r}.") from error
