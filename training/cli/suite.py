"""``m2d-train suite``."""

from __future__ import annotations

from pathlib import Path

import click

from m2d_hub.cli.options import json_option, model_option

from .options import answer, exit_status, logging_to

EXAMPLE = """\b
Examples:
  m2d-train suite paper-linear --model m2d-0.7 --data datasets/ --out runs/linear
  m2d-train suite paper-finetune --model m2d-0.7 --data datasets/ --out runs/finetune --task esc50
  m2d-train suite icbhi --model RUN/export --data datasets/ --out runs/icbhi --seeds 5
"""


@click.command("suite", epilog=EXAMPLE)
@click.argument("suite", metavar="SUITE")
@model_option()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder that holds the data sets."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the answer; resumed.")
@click.option(
    "--task", "tasks", multiple=True, metavar="TASK", help="Only this one; may be given several times."
)
@click.option("--seeds", type=click.IntRange(min=1), help="Trainings of each task.  [default: as the paper]")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of all tasks.")
@json_option
def suite(
    suite: str,
    model: str,
    data: Path,
    out: Path,
    tasks: tuple[str, ...],
    seeds: int | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluates NAME on all tasks of SUITE whose data sets --data holds, and writes one table.

    \b
    SUITE: paper-linear (nine tasks), paper-finetune (as2m, as20k, esc50, spcv2, vc1), icbhi, sprsound,
    imagenet.

    --data holds a folder for each data set as it is published, by the name of `m2d-train list` (esc50/,
    us8k/ ...) or the published one, or its list as NAME.csv; a split of others lies there as NAME-split.csv
    or in NAME-split/. What is not there is told of. Run again with the same --out, it goes on.

    OUT/suite.csv and suite.json have the figures with the paper's and the authors' beside them, where these
    are known; OUT/TASK is each task's run (exit status 3 where a task failed).
    """
    from ..suites.run import parse_suite_settings, run_suite

    fields = parse_suite_settings(suite, settings)
    with logging_to(out / "suite.log"):
        result = run_suite(suite, model=model, data=data, out=out, tasks=tasks, seeds=seeds, **fields)
    text = f"{result.text()}\nIn percent. See {result.out}."
    click.echo(answer(result.to_dict(), as_json, text))
    exit_status(result.failed)
