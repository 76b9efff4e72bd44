"""The console script ``m2d-train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import Group, json_option

from ..runs.devices import is_first_process
from .finetune import finetune
from .linear_eval import linear_eval
from .list import list_
from .options import answer, compile_option, exit_status, logging_to
from .statistics import measure
from .suite import suite
from .summarise import summarise
from .zero_shot import zero_shot

PRETRAIN_EXAMPLE = """\b
Examples:
  m2d-train pretrain m2d-0.7 --data clips.csv --out runs/m2d
  m2d-train pretrain m2d-x-icbhi2017 --data icbhi.csv --noise fsd50k/ --out runs/icbhi
  torchrun --nproc_per_node=4 -m m2d_training pretrain m2d-as --data 'shards/*.tar' --out runs/as
"""
PREPARE_EXAMPLE = """\b
Examples:
  m2d-train prepare recordings/ --out shards/
  m2d-train prepare list.csv --out shards/ --teacher hubert-base-l9
"""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="m2d-hub", prog_name="m2d-train")
def main() -> None:
    """Pre-train, fine-tune and evaluate Masked Modeling Duo models (M2D, M2D-X, MSM-MAE)."""


@main.command(epilog=PRETRAIN_EXAMPLE)
@click.argument("preset")
@click.option("--data", required=True, help="CSV with a 'file' column, tar shards, or a folder.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; resumed if it exists."
)
@click.option("--noise", help="Background noise, as --data.")
@click.option("--valid", help="Clips for the validation loss, as --data.")
@click.option("--labelled", help="CSV with file, label and split: linear evaluation every few epochs.")
@click.option("--start", help="Weights to start from: a name, folder or file; 'none' for random ones.")
@click.option("--teacher", help="Frozen offline encoder: hubert-base-l9, a model's name, or a folder.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the preset.")
@compile_option
@json_option
def pretrain(
    preset: str,
    out: Path,
    settings: tuple[str, ...],
    compile: bool,
    as_json: bool,
    **sources: Any,
) -> None:
    """Pre-train PRESET on the clips of --data; run the same command again to resume.

    Clips that cannot be read are listed in OUT/errors.csv and skipped (exit status 3 then).
    """
    from ..pretraining.presets import load_preset
    from ..pretraining.run import pretrain as run_pretraining
    from ..runs.settings import apply_settings, with_fields

    chosen = load_preset(preset)
    config = with_fields(apply_settings(chosen.config, settings), {"compile": True} if compile else {})
    with logging_to(out / "train.log"):
        result = run_pretraining(dataclasses.replace(chosen, config=config), out=out, **sources)
    if is_first_process():
        values = {"run": str(out), "export": str(result.model), "left_out": result.left_out}
        click.echo(answer(values, as_json, f"The model is in {result.model}."))
    exit_status(result.left_out)


@main.command(epilog=PREPARE_EXAMPLE)
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the shards.")
@click.option("--sample-rate", default=16_000, show_default=True, help="Hz.")
@click.option("--split-s", type=float, help="Cut longer clips into parts of this many seconds.")
@click.option("--teacher", help="HuBERT, whose features are stored: hubert-base-l9, or a folder.")
@click.option("--num-workers", default=0, show_default=True, help="Processes that decode.")
@json_option
def prepare(
    data: str,
    out: Path,
    sample_rate: int,
    split_s: float | None,
    teacher: str | None,
    num_workers: int,
    as_json: bool,
) -> None:
    """Convert DATA, a folder or CSV of audio in any format, to tar shards of FLAC with statistics.

    OUT exists once it is complete. Files that cannot be read are listed in OUT/errors.csv and skipped (exit
    status 3 then).
    """
    from ..pretraining.prepare import prepare as prepare_shards

    result = prepare_shards(
        data, out, sample_rate=sample_rate, split_s=split_s, teacher=teacher, num_workers=num_workers
    )
    text = (
        f"{result.clips} clips, {result.hours:.2f} h, {result.left_out} files skipped; log-mel mean "
        f"{result.mean:.3f}, std {result.std:.3f}. The shards are in {out}."
    )
    click.echo(answer({**vars(result), "out": str(out)}, as_json, text))
    exit_status(result.left_out)


main.add_command(finetune)
main.add_command(linear_eval)
main.add_command(list_)
main.add_command(measure)
main.add_command(suite)
main.add_command(summarise)
main.add_command(zero_shot)
