"""``m2d-train list``, ``prepare`` and ``statistics``: the data of a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import json_option

from .options import COUNT, PATH, answer

LIST_EXAMPLE = """\b
Examples:
  m2d-train list esc50 ESC-50-master/ --out esc50.csv
  m2d-train list nsynth nsynth/ --variant pitch --out nsynth-pitch.csv
  m2d-train list gtzan genres/ --out gtzan.csv --split-file train_filtered.txt \\
      --split-file valid_filtered.txt --split-file test_filtered.txt
  m2d-train list icbhi2017 ICBHI_final_database/ --variant pretrain --out icbhi-pretrain.csv
  m2d-train list evar evar/metadata/cremad.csv --audio work/16k/cremad/ --out cremad.csv
  m2d-train list --where
"""
PREPARE_EXAMPLE = """\b
Examples:
  m2d-train prepare recordings/ --out shards/
  m2d-train prepare list.csv --out shards/ --teacher hubert-base-l9
"""
STATISTICS_EXAMPLE = """\b
Example:
  m2d-train statistics librispeech.csv
"""


@click.command("list", epilog=LIST_EXAMPLE)
@click.argument("dataset", required=False)
@click.argument("folder", required=False, type=PATH)
@click.option("--out", type=PATH, help="CSV to write.")
@click.option("--variant", metavar="NAME", help="List to make, where there are several; see --where.")
@click.option(
    "--split-file",
    "split_files",
    multiple=True,
    type=PATH,
    help="Published split, for data sets without one of their own; repeatable.",
)
@click.option("--audio", type=PATH, help="Folder of the clips, for evar only.")
@click.option("--where", is_flag=True, help="Show source, licence and layout of DATASET, or of all.")
@json_option
def list_(
    dataset: str | None, folder: Path | None, out: Path | None, where: bool, as_json: bool, **options: Any
) -> None:
    """Make the list of a public data set from its FOLDER in the published layout.

    \b
    DATASET: esc50, us8k, spcv1, spcv2, vc1, nsynth, gtzan, surge, cremad, voxforge, audioset, as20k,
    fsd50k, icbhi2017, sprsound, librispeech, imagenet; evar takes a table of that platform as FOLDER.

    Use the list with `m2d-train finetune`, `linear-eval` and `pretrain`. Clips whose audio does not exist are
    skipped and counted, and differences from the published counts are reported.
    """
    from ..data.lists.make import DATASETS, describe, make_list

    if where:
        click.echo("\n\n".join(map(describe, DATASETS if dataset is None else [dataset])))
        return
    if dataset is None or folder is None or out is None:
        raise click.UsageError("DATASET, FOLDER and --out are required, or --where alone.")
    made = make_list(dataset, folder, out, **options)
    *splits, (_, total) = made.clips.items()
    parts = ", ".join(f"{split}: {clips:,}" for split, clips in splits)
    text = f"{made.path} lists {total:,} clips{f' ({parts})' if parts else ''} with {made.labels:,} labels; "
    text += f"{made.missing:,} are missing."
    answer({**dataclasses.asdict(made), "path": str(made.path)}, as_json, text)


@click.command(epilog=PREPARE_EXAMPLE)
@click.argument("data")
@click.option("--out", required=True, type=PATH, help="Folder for the shards.")
@click.option("--sample-rate", default=16_000, show_default=True, help="Hz.")
@click.option("--split-s", type=float, help="Cut longer clips into parts of this many seconds.")
@click.option("--teacher", help="HuBERT, whose features are stored: hubert-base-l9, or a folder.")
@click.option("--num-workers", default=0, show_default=True, help="Processes that decode.")
@json_option
def prepare(data: str, out: Path, as_json: bool, **options: Any) -> None:
    """Convert DATA, a folder or CSV of audio in any format, to tar shards of FLAC with statistics.

    OUT exists once it is complete. Files that cannot be read are listed in OUT/errors.csv and skipped (exit
    status 3 then).
    """
    from ..pretraining.prepare import prepare as prepare_shards

    result = prepare_shards(data, out, **options)
    text = (
        f"{result.clips} clips, {result.hours:.2f} h, {result.left_out} files skipped; log-mel mean "
        f"{result.mean:.3f}, std {result.std:.3f}. The shards are in {out}."
    )
    answer({**vars(result), "out": str(out)}, as_json, text, result.left_out)


@click.command(epilog=STATISTICS_EXAMPLE)
@click.argument("data")
@click.option("--sample-rate", type=COUNT, default=16_000, show_default=True, help="Sample rate in Hz.")
@click.option("--frames", type=COUNT, default=608, show_default=True, help="Frames per crop.")
@click.option(
    "--crops", type=COUNT, default=5000, show_default=True, help="Maximum number of clips; one crop per clip."
)
@json_option
def statistics(data: str, sample_rate: int, frames: int, crops: int, as_json: bool) -> None:
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
    answer({**vars(found)}, as_json, f"log-mel mean {found.mean:.3f}, std {found.std:.3f}")
