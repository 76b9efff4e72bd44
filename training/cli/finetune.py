"""``m2d-train finetune``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2d_hub.cli.options import json_option, model_option

from ..runs.devices import is_first_process
from .options import answer, compile_option, exit_status, logging_to

if TYPE_CHECKING:
    from ..evaluation.splits import Select

EXAMPLE = """\b
Examples:
  m2d-train finetune small --model m2d-mini --data labelled.csv --out runs/mine
  m2d-train finetune esc50 --model m2d-0.7 --data esc50.csv --out runs/esc50 --seeds 6
  m2d-train finetune imagenet --model RUN/export --data imagenet/ --out runs/imagenet
  torchrun --nproc_per_node=4 -m m2d_training finetune as2m --model m2d-0.7 --data audioset.csv \\
      --out runs/as2m --set batch_size=16
"""


@click.command(epilog=EXAMPLE)
@click.argument("preset")
@model_option()
@click.option(
    "--data",
    required=True,
    help="CSV with file, label and split (train, valid, test, or folds), or a folder train/CLASS/FILE ...",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder; resumed.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Averaged trainings.")
@click.option(
    "--select",
    type=click.Choice(["valid", "last", "test"]),
    help="Epoch to keep: best on valid (default), last, or best on test, as in the paper.",
)
@click.option(
    "--valid-share",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the training clips held out to choose the epoch.",
)
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the preset.")
@compile_option
@json_option
def finetune(
    preset: str,
    model: str,
    data: str,
    out: Path,
    seeds: int,
    select: Select | None,
    valid_share: float | None,
    settings: tuple[str, ...],
    compile: bool,
    as_json: bool,
) -> None:
    """Fine-tune NAME on the labelled clips of --data with the settings of PRESET.

    \b
    Presets: small (any list, no tuning needed), and the paper's as2m, as20k,
    esc50, spcv2, vc1, icbhi2017, sprsound, and imagenet for images.

    OUT/export is the model, for `m2d-hub tag` and load_model (image models: for timm). OUT/report.json,
    worst.csv and the plots show the result on the test clips. Run the same command to resume. Unreadable
    clips are skipped and listed in OUT/errors.csv (exit status 3 then).
    """
    from ..finetuning.presets import load_finetune_preset
    from ..finetuning.run import finetune as run_finetuning
    from ..runs.settings import parse_settings

    given = {"select": select, "valid_share": valid_share, "compile": compile or None}
    fields = parse_settings(load_finetune_preset(preset), settings)
    fields |= {name: value for name, value in given.items() if value is not None}
    with logging_to(out / "train.log"):
        result = run_finetuning(preset, model=model, data=data, out=out, seeds=seeds, **fields)
    if is_first_process():
        figures = {"metric": result.metric, **dataclasses.asdict(result.interval)}
        text = f"{result.metric} {result.interval} on the test clips. The model is in {result.model}."
        values = {"run": str(out), "export": str(result.model), **figures, "left_out": result.left_out}
        click.echo(answer(values, as_json, text))
    exit_status(result.left_out)
