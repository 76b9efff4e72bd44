"""``m2d-train statistics``: mean and standard deviation of a list's log-mel values."""

from __future__ import annotations

import click

from m2d_hub.cli.options import json_option

from .options import answer

EXAMPLE = """\b
Example:
  m2d-train statistics librispeech.csv
"""


@click.command("statistics", epilog=EXAMPLE)
@click.argument("data")
@click.option(
    "--sample-rate", type=click.IntRange(min=1), default=16_000, show_default=True, help="Sample rate in Hz."
)
@click.option("--frames", type=click.IntRange(min=1), default=608, show_default=True, help="Frames per crop.")
@click.option(
    "--crops",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    help="Maximum number of clips; one crop per clip.",
)
@json_option
def measure(data: str, sample_rate: int, frames: int, crops: int, as_json: bool) -> None:
    """Measure the mean and standard deviation of log-mel values in DATA: a list, shards or a folder.

    \b
    Pass the values to load_model(NAME, mean=, std=), or as --set mean= and --set std= of pretrain.
    """
    from m2d_hub.config import FrontendConfig

    from ..data.crops import CropPlan
    from ..data.manifest import read_manifest
    from ..data.statistics import measure_statistics

    plan = CropPlan(FrontendConfig.for_sample_rate(sample_rate), frames, short_clips="pad")
    found = measure_statistics(read_manifest(data), plan, crops)
    values: dict[str, object] = {"mean": found.mean, "std": found.std, "sample_rate": found.sample_rate}
    click.echo(answer(values, as_json, f"log-mel mean {found.mean:.3f}, std {found.std:.3f}"))
