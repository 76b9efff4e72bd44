"""``m2d-train finetune``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from m2d_hub.cli.options import SOME_FAILED

from ..runs.devices import is_first_process
from .options import answer, logging_to

EXAMPLE = """\b
Examples:
  m2d-train finetune small --model m2d-mini --data labelled.csv --out runs/mine
  m2d-train finetune esc50 --model m2d-0.7 --data esc50.csv --out runs/esc50 --seeds 6
  torchrun --nproc_per_node=4 -m m2d_training finetune as2m --model m2d-0.7 --data audioset.csv \\
      --out runs/as2m --set batch_size=16
"""


@click.command(epilog=EXAMPLE)
@click.argument("preset")
@click.option("--model", required=True, metavar="NAME", help="A name, folder or file, or hf-hub:org/repo.")
@click.option("--data", required=True, help="CSV with file, label and split (train, valid, test, or folds).")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; resumed if it exists."
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings with seeds that count up, averaged.",
)
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the preset.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def finetune(
    preset: str,
    model: str,
    data: str,
    out: Path,
    seeds: int,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fine-tunes NAME on the labelled clips of --data with the settings of PRESET.

    \b
    Presets: small (lists of one's own: nothing to tune), and the paper's
    as2m, as20k, esc50, spcv2, vc1, icbhi2017, sprsound.

    OUT/export is the model, for `m2d-hub tag` and load_model; OUT/report.json, worst.csv and the pictures
    beside them say how good it is on the test clips. Run again with the same --out, it resumes.
    Clips that cannot be read are listed in OUT/errors.csv and left out (exit status 3 then).
    """
    from ..finetuning.presets import load_finetune_preset
    from ..finetuning.run import FinetuneOptions
    from ..finetuning.run import finetune as run_finetuning
    from ..runs.settings import apply_settings

    config = apply_settings(load_finetune_preset(preset), settings)
    options = FinetuneOptions(preset, model, data, out, seeds)
    with logging_to(out / "train.log"):
        result = run_finetuning(config, options)
    if is_first_process():
        figures = {"metric": result.metric, **dataclasses.asdict(result.interval)}
        text = f"{result.metric} {result.interval} on the test clips. The model is in {result.model}."
        values = {"run": str(out), "export": str(result.model), **figures, "left_out": result.left_out}
        click.echo(answer(values, as_json, text))
    if result.left_out:
        sys.exit(SOME_FAILED)
