"""``m2d-train suite``, ``summarise`` and ``zero-shot``: evaluations of models and of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import batch_size_option, device_option, json_option, model_option

from .options import COUNT, PATH, answer, logging_to, out_option

SUITE_EXAMPLE = """\b
Examples:
  m2d-train suite paper-linear --model m2d-0.7 --data datasets/ --out runs/linear
  m2d-train suite paper-finetune --model m2d-0.7 --data datasets/ --out runs/finetune --task esc50
  m2d-train suite icbhi --model RUN/export --data datasets/ --out runs/icbhi --seeds 5
"""
SUMMARISE_EXAMPLE = """\b
Examples:
  m2d-train summarise runs/icbhi-*/ --out runs/icbhi-mean
  m2d-train summarise runs/step-*/ --by epoch --out runs/over-epochs
  m2d-train summarise runs/ratio-*/ --by mask_ratio --out runs/mask-ratio
"""
ZERO_SHOT_EXAMPLE = """\b
Examples:
  m2d-train zero-shot esc50.csv --model m2d-clap-2024 --task esc50 --out runs/esc50-names
  m2d-train zero-shot esc50.csv --model m2d-clap-2024 --out runs/two-prompts \\
      --prompt "{} can be heard" --prompt "the sound of {}"
"""


@click.command(epilog=SUITE_EXAMPLE)
@click.argument("suite", metavar="SUITE")
@model_option()
@click.option("--data", required=True, type=PATH, help="Folder of the data sets.")
@out_option
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Run only this task; repeatable.")
@click.option("--seeds", type=COUNT, help="Trainings of each task.  [default: as the paper]")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of all tasks.")
@json_option
def suite(suite: str, out: Path, settings: tuple[str, ...], as_json: bool, **options: Any) -> None:
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
        result = run_suite(suite, out=out, **options, **fields)
    answer(result.to_dict(), as_json, f"{result.text()}\nIn percent. See {result.out}.", result.failed)


@click.command(epilog=SUMMARISE_EXAMPLE)
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("--out", required=True, type=PATH, help="Folder of the table and the plot.")
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
    answer(values, as_json, "\n".join([*lines, f"See {out}."]))


@click.command("zero-shot", epilog=ZERO_SHOT_EXAMPLE)
@click.argument("data", metavar="LIST")
@click.option("--model", required=True, metavar="NAME", help="With a text space, such as m2d-clap-2024.")
@click.option("--out", required=True, type=PATH, help="Output folder.")
@click.option(
    "--task",
    metavar="TASK",
    help="Prompt and length of clips of the paper's platform for esc50, us8k, fsd50k, audioset, cremad, "
    "gtzan or nsynth.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="{} is the label; several prompts are averaged.  [default: that of the task, or '{} can be heard']",
)
@device_option
@batch_size_option
@json_option
def zero_shot(data: str, out: Path, prompts: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Classify the clips of LIST by the names of their labels, without training.

    LIST is a CSV with file, label and split: clips of the split test are used, or all clips of folds. Reports
    accuracy, or mAP for multi-label lists, with its 95 % interval over test clips. Clips of all folds are
    scored together.

    OUT/report.json, worst.csv and the plot show the details. Unreadable clips are skipped and listed in
    OUT/errors.csv (exit status 3 then).
    """
    from ..evaluation.report import require_own
    from ..linear.zero_shot import METHOD
    from ..linear.zero_shot import zero_shot as run_evaluation

    require_own(out, METHOD)
    with logging_to(out / "eval.log"):
        result = run_evaluation(data, out=out, prompts=prompts, **options)
    figures = {name: result.report[name] for name in ("metric", "value", "low", "high")}
    text = f"{result.metric} {result.interval} on the test clips. See {out}."
    values = {"run": str(out), **figures, "left_out": result.left_out}
    answer(values, as_json, text, result.left_out)
