"""The console script ``m2d-train``, with ``pretrain`` and ``finetune``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import Group, json_option, model_option

from .data import list_, prepare, statistics
from .evaluate import suite, summarise, zero_shot
from .linear_eval import linear_eval
from .options import COUNT, PATH, answer, compile_option, logging_to, out_option, set_option

PRETRAIN_EXAMPLE = """\b
Examples:
  m2d-train pretrain m2d-0.7 --data clips.csv --out runs/m2d
  m2d-train pretrain m2d-x-icbhi2017 --data icbhi.csv --noise fsd50k/ --out runs/icbhi
  torchrun --nproc_per_node=4 -m m2d_training pretrain m2d-as --data 'shards/*.tar' --out runs/as
"""
FINETUNE_EXAMPLE = """\b
Examples:
  m2d-train finetune small --model m2d-mini --data labelled.csv --out runs/mine
  m2d-train finetune esc50 --model m2d-0.7 --data esc50.csv --out runs/esc50 --seeds 6
  m2d-train finetune imagenet --model RUN/export --data imagenet/ --out runs/imagenet
  torchrun --nproc_per_node=4 -m m2d_training finetune as2m --model m2d-0.7 --data audioset.csv \\
      --out runs/as2m --set batch_size=16
"""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="m2d-hub", prog_name="m2d-train")
def main() -> None:
    """Pre-train, fine-tune and evaluate Masked Modeling Duo models (M2D, M2D-X, MSM-MAE)."""


@main.command(epilog=PRETRAIN_EXAMPLE)
@click.argument("preset")
@click.option("--data", required=True, help="CSV with a 'file' column, tar shards, or a folder.")
@click.option("--out", required=True, type=PATH, help="Folder of the run; resumed if it exists.")
@click.option("--noise", help="Background noise, as --data.")
@click.option("--valid", help="Clips for the validation loss, as --data.")
@click.option("--labelled", help="CSV with file, label and split: linear evaluation every few epochs.")
@click.option("--start", help="Weights to start from: a name, folder or file; 'none' for random ones.")
@click.option("--teacher", help="Frozen offline encoder: hubert-base-l9, a model's name, or a folder.")
@set_option
@compile_option
@json_option
def pretrain(
    preset: str, out: Path, settings: tuple[str, ...], compile: bool, as_json: bool, **sources: Any
) -> None:
    """Pre-train PRESET on the clips of --data; run the same command again to resume.

    Clips that cannot be read are listed in OUT/errors.csv and skipped (exit status 3 then).
    """
    from ..pretraining.presets import load_preset
    from ..pretraining.run import pretrain as run_pretraining
    from ..runs.settings import parse_settings

    fields = parse_settings(load_preset(preset).config, settings) | ({"compile": True} if compile else {})
    with logging_to(out / "train.log"):
        result = run_pretraining(preset, out=out, **sources, **fields)
    values = {"run": str(out), "export": str(result.model), "left_out": result.left_out}
    answer(values, as_json, f"The model is in {result.model}.", result.left_out)


@main.command(epilog=FINETUNE_EXAMPLE)
@click.argument("preset")
@model_option()
@click.option(
    "--data",
    required=True,
    help="CSV with file, label and split (train, valid, test, or folds), or a folder train/CLASS/FILE ...",
)
@out_option
@click.option("--seeds", type=COUNT, default=1, show_default=True, help="Averaged trainings.")
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
@set_option
@compile_option
@json_option
def finetune(
    preset: str,
    out: Path,
    select: str | None,
    valid_share: float | None,
    settings: tuple[str, ...],
    compile: bool,
    as_json: bool,
    **options: Any,
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
        result = run_finetuning(preset, out=out, **options, **fields)
    figures = {"metric": result.metric, **dataclasses.asdict(result.interval)}
    text = f"{result.metric} {result.interval} on the test clips. The model is in {result.model}."
    values = {"run": str(out), "export": str(result.model), **figures, "left_out": result.left_out}
    answer(values, as_json, text, result.left_out)


for command in (linear_eval, list_, prepare, statistics, suite, summarise, zero_shot):
    main.add_command(command)
