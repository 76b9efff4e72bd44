"""``m2d-train zero-shot``."""

from __future__ import annotations

from pathlib import Path

import click

from m2d_hub.cli.options import batch_size_option, device_option, json_option

from .options import answer, exit_status, logging_to

EXAMPLE = """\b
Examples:
  m2d-train zero-shot esc50.csv --model m2d-clap-2024 --out runs/esc50-names
  m2d-train zero-shot esc50.csv --model m2d-clap-2024 --out runs/two-prompts \\
      --prompt "{} can be heard" --prompt "the sound of {}"
"""


@click.command("zero-shot", epilog=EXAMPLE)
@click.argument("data", metavar="LIST")
@click.option("--model", required=True, metavar="NAME", help="With a text space, such as m2d-clap-2024.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="{} is the label; several prompts are averaged.  [default: '{} can be heard']",
)
@device_option
@batch_size_option
@json_option
def zero_shot(
    data: str,
    model: str,
    out: Path,
    prompts: tuple[str, ...],
    device: str | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Classify the clips of LIST by the names of their labels, without training.

    LIST is a CSV with file, label and split: clips of the split test are used, or all clips of folds. Reports
    accuracy, or mAP for multi-label lists, with its 95 % interval over test clips.

    OUT/report.json, worst.csv and the plot show the details. Unreadable clips are skipped and listed in
    OUT/errors.csv (exit status 3 then).
    """
    from ..evaluation.report import require_own
    from ..linear.zero_shot import METHOD, PROMPTS
    from ..linear.zero_shot import zero_shot as run_evaluation

    require_own(out, METHOD)
    with logging_to(out / "eval.log"):
        result = run_evaluation(
            data, model=model, out=out, prompts=prompts or PROMPTS, device=device, batch_size=batch_size
        )
    figures = {name: result.report[name] for name in ("metric", "value", "low", "high")}
    text = f"{result.metric} {result.interval} on the test clips. See {out}."
    click.echo(answer({"run": str(out), **figures, "left_out": result.left_out}, as_json, text))
    exit_status(result.left_out)
