"""``m2d-train list``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from m2d_hub.cli.options import json_option

from .options import answer

EXAMPLE = """\b
Examples:
  m2d-train list esc50 ESC-50-master/ --out esc50.csv
  m2d-train list nsynth nsynth/ --variant pitch --out nsynth-pitch.csv
  m2d-train list gtzan genres/ --out gtzan.csv --split-file train_filtered.txt \\
      --split-file valid_filtered.txt --split-file test_filtered.txt
  m2d-train list icbhi2017 ICBHI_final_database/ --variant pretrain --out icbhi-pretrain.csv
  m2d-train list evar evar/metadata/cremad.csv --audio work/16k/cremad/ --out cremad.csv
  m2d-train list --where
"""


@click.command("list", epilog=EXAMPLE)
@click.argument("dataset", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="CSV to write.")
@click.option("--variant", metavar="NAME", help="List to make, where there are several; see --where.")
@click.option(
    "--split-file",
    "split_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Published split, for data sets without one of their own; repeatable.",
)
@click.option("--audio", type=click.Path(path_type=Path), help="Folder of the clips, for evar only.")
@click.option("--where", is_flag=True, help="Show source, licence and layout of DATASET, or of all.")
@json_option
def list_(
    dataset: str | None,
    folder: Path | None,
    out: Path | None,
    variant: str | None,
    split_files: tuple[Path, ...],
    audio: Path | None,
    where: bool,
    as_json: bool,
) -> None:
    """Make the list of a public data set from its FOLDER in the published layout.

    \b
    DATASET: esc50, us8k, spcv1, spcv2, vc1, nsynth, gtzan, surge, cremad, voxforge, audioset, as20k,
    fsd50k, icbhi2017, sprsound, librispeech, imagenet; evar takes a table of that platform as FOLDER.

    Use the list with `m2d-train finetune`, `linear-eval` and `pretrain`. Clips whose audio does not exist are
    skipped and counted, and differences from the published counts are reported.
    """
    from ..data.lists.make import DATASETS, make_list

    if where:
        names = list(DATASETS) if dataset is None else [dataset]
        click.echo("\n\n".join(map(describe, names)))
        return
    if dataset is None or folder is None or out is None:
        raise click.UsageError("DATASET, FOLDER and --out are required, or --where alone.")
    made = make_list(dataset, folder, out, variant=variant, split_files=split_files, audio=audio)
    *splits, (_, total) = made.clips.items()
    parts = ", ".join(f"{split}: {clips:,}" for split, clips in splits)
    text = f"{made.path} lists {total:,} clips{f' ({parts})' if parts else ''} with {made.labels:,} labels; "
    text += f"{made.missing:,} are missing."
    click.echo(answer({**dataclasses.asdict(made), "path": str(made.path)}, as_json, text))


def describe(name: str) -> str:
    """Return source, licence, folder layout and lists of a data set."""
    from ..data.lists.dataset import ALL
    from ..data.lists.make import find_dataset

    dataset = find_dataset(name)
    lines = [f"{name}: {dataset.title}", f"from: {dataset.source}", f"licence: {dataset.licence}"]
    lines.append(f"folder: {dataset.layout}")
    if dataset.split:
        lines.append(f"--split-file: {dataset.split}")
    for variant, made in dataset.variants.items():
        counts = ", ".join(
            f"{clips:,}" if split == ALL else f"{split} {clips:,}"
            for split, clips in made.clips.items()
            if not split.isdecimal()  # folds
        )
        lines.append(f"--variant {variant}: {made.about}" + (f"; clips: {counts}" if counts else ""))
    return "\n  ".join([*lines, f"reference: {dataset.reference}"])
