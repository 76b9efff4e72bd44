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
FOLDER = click.Path(path_type=Path)


@click.command("suite", epilog=EXAMPLE)
@click.argument("suite", metavar="SUITE")
@model_option()
@click.option("--data", required=True, type=FOLDER, help="Folder of the data sets.")
@click.option("--out", required=True, type=FOLDER, help="Output folder; resumed.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Run only this task; repeatable.")
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
    """Evaluate NAME on all tasks of SUITE whose data sets are in --data, and write one table.

    \b
    SUITE: paper-linear (nine tasks), paper-finetune (as2m, as20k, esc50, spcv2, vc1), icbhi, sprsound,
    imagenet.

    --data contains a folder per data set as published, under the name of `m2d-train list` (esc50/, us8k/ ...)
    or the published one, or its list as NAME.csv; a split published by others is NAME-split.csv or in
    NAME-split/. Missing data sets are listed. Run again with the same --out to resume.

    OUT/suite.csv and suite.json have the figures, with those of the paper and the authors where known;
    OUT/TASK is the run of a task (exit status 3 if a task failed).
    """
    from ..suites.run import parse_suite_settings, run_suite

    fields = parse_suite_settings(suite, settings)
    with logging_to(out / "suite.log"):
        result = run_suite(suite, model=model, data=data, out=out, tasks=tasks, seeds=seeds, **fields)
    text = f"{result.text()}\nIn percent. See {result.out}."
    click.echo(answer(result.to_dict(), as_json, text))
    exit_status(result.failed)
