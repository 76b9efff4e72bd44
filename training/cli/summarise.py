"""``m2d-train summarise``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from m2d_hub.cli.options import json_option

from .options import answer

EXAMPLE = """\b
Examples:
  m2d-train summarise runs/icbhi-*/ --out runs/icbhi-mean
  m2d-train summarise runs/step-*/ --by epoch --out runs/over-epochs
  m2d-train summarise runs/ratio-*/ --by mask_ratio --out runs/mask-ratio
"""


@click.command("summarise", epilog=EXAMPLE)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the table and the plot."
)
@click.option("--by", metavar="FIELD", help="Plot the score over this field of the runs, or over the epoch.")
@json_option
def summarise(runs: tuple[Path, ...], out: Path, by: str | None, as_json: bool) -> None:
    """Average linear evaluations or fine-tunings: mean and 95 % interval over all their trainings.

    \b
    With --by, a mean per value, and a plot: epoch (of the kept checkpoints that were evaluated), or
    a field of the evaluations or of their models' pre-trainings, such as mask_ratio.
    """
    from ..suites.summary import summarise as summarise_runs

    found = summarise_runs(runs, out=out, by=by)
    lines = []
    for row in found.rows:
        spread = "" if row.plus_minus is None else f" ± {row.plus_minus:.2f}"
        lines.append(f"{row.value}: {found.metric} {row.mean:.2f}{spread} % ({row.trainings} trainings)")
    plot = None if found.picture is None else str(found.picture)
    values = dataclasses.asdict(found) | {"table": str(found.table), "picture": plot}
    click.echo(answer(values, as_json, "\n".join([*lines, f"See {out}."])))
