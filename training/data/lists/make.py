"""Make the list of a public data set from its folder, and compare it with the published counts."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2d_hub.corpus.tables import PART_COLUMNS
from m2d_hub.errors import ConfigError
from m2d_hub.io import as_text, open_file, replacing

from ..annotations import split_labels
from ..folders import FileLookup
from .audioset import AS20K, AUDIOSET
from .dataset import ALL, ListRow, PublicDataset, Request, Variant
from .evar import EVAR
from .images import IMAGENET
from .music import GTZAN, NSYNTH, SURGE
from .respiratory import ICBHI2017, SPRSOUND
from .sounds import ESC50, FSD50K, US8K
from .speech import CREMAD, LIBRISPEECH, SPCV1, SPCV2, VC1, VOXFORGE

logger = logging.getLogger(__name__)

COLUMNS = ("file", "label", "split", *PART_COLUMNS)
DATASETS: dict[str, PublicDataset] = {
    "esc50": ESC50,
    "us8k": US8K,
    "spcv1": SPCV1,
    "spcv2": SPCV2,
    "vc1": VC1,
    "nsynth": NSYNTH,
    "gtzan": GTZAN,
    "surge": SURGE,
    "cremad": CREMAD,
    "voxforge": VOXFORGE,
    "audioset": AUDIOSET,
    "as20k": AS20K,
    "fsd50k": FSD50K,
    "icbhi2017": ICBHI2017,
    "sprsound": SPRSOUND,
    "librispeech": LIBRISPEECH,
    "imagenet": IMAGENET,
    "evar": EVAR,
}


@dataclass(frozen=True)
class MadeList:
    """Contents of a list, and their differences from the published counts."""

    path: Path
    clips: Mapping[str, int]  # by split, and "all"
    labels: int  # distinct ones
    missing: int  # clips of the data set whose audio does not exist, skipped
    differences: tuple[str, ...]  # from the published counts, one sentence each


def find_dataset(name: str) -> PublicDataset:
    """Return the data set of this name.

    Raises:
        ConfigError: The name is unknown; the message lists the known ones.
    """
    if name not in DATASETS:
        raise ConfigError(f"Unknown data set {name!r}. Available: {', '.join(DATASETS)}.")
    return DATASETS[name]


def describe(name: str) -> str:
    """Return source, licence, folder layout and lists of a data set, for a reader."""
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


def make_list(
    dataset: str,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    variant: str | None = None,
    split_files: Sequence[str | os.PathLike[str]] = (),
    audio: str | os.PathLike[str] | None = None,
) -> MadeList:
    """Make the list of a public data set from its folder, for fine-tuning, evaluation or pre-training.

    Clips whose audio does not exist are skipped and counted. A warning lists differences from the published
    counts.

    Args:
        dataset: Name of the data set, as ``esc50``; ``m2d-train list --where`` shows all.
        folder: The data set as published; for ``evar`` a table of that platform.
        out: CSV to write. Files below its folder are written relative to it, others by their full path.
        variant: List to make, where there are several, as ``pitch`` of ``nsynth``.
        split_files: The published split, for data sets without one of their own.
        audio: Folder of the clips, for ``evar`` only.

    Raises:
        ConfigError: A name is unknown, or the folder does not have the published layout.
    """
    public = find_dataset(dataset)
    if variant is not None and variant not in public.variants:
        raise ConfigError(f"{dataset} has no variant {variant!r}. Available: {', '.join(public.variants)}.")
    chosen = public.variants[variant or next(iter(public.variants))]
    request = Request(
        public, Path(folder), tuple(map(Path, split_files)), None if audio is None else Path(audio)
    )
    _check(dataset, request, Path(out))
    rows, missing = _usable(chosen.rows(request), public.title)
    if not rows:
        raise ConfigError(
            f"{folder} holds none of the {missing:,} clips of {public.title}; expected as published: "
            f"{public.layout}."
        )
    clips = {**Counter(row.split for row in rows if row.split), ALL: len(rows)}
    labels = len({label for row in rows for label in split_labels(row.label)})
    differences = tuple(_differences(clips, labels, chosen))
    _write(Path(out), rows)
    if differences:
        logger.warning("%s: %s (%s)", public.title, "; ".join(differences), public.reference)
    return MadeList(Path(out), clips, labels, missing, differences)


def _check(name: str, request: Request, out: Path) -> None:
    if name != "evar" and not request.folder.is_dir():
        raise ConfigError(f"{request.folder} is not a folder; give that of {request.dataset.title}.")
    if request.split_files and not request.dataset.split:
        raise ConfigError(f"{name} has its own split; omit split_files (--split-file).")
    if request.audio is not None and name != "evar":
        raise ConfigError(f"audio is only for evar; for {name} give the folder itself.")
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"out must be a .csv file, got {out}.")
    if out.is_file() and not _is_list(out):
        raise ConfigError(
            f"{out} exists and is not a list (its first column is not 'file'); give another out."
        )


def _is_list(path: Path) -> bool:
    with open_file(path, "a list", ConfigError) as lines:
        return lines.readline().strip().split(b",")[0] == COLUMNS[0].encode()


def _usable(rows: Iterable[ListRow], title: str) -> tuple[list[ListRow], int]:
    """Return the rows whose audio exists, and the number of the others."""
    lookup = FileLookup()
    usable, missing = [], []
    for row in rows:
        file = lookup.find_audio(row.file)
        is_empty = row.end_s is not None and row.end_s <= (row.start_s or 0.0)
        if file is None or is_empty or as_text(file) != file:  # a name that UTF-8 cannot write
            missing.append(row.file)
        else:
            usable.append(replace(row, file=file))
    if missing:
        logger.warning(
            "%s: %d of %d clips do not exist or are empty and are skipped, the first is %s",
            title,
            len(missing),
            len(missing) + len(usable),
            missing[0],
        )
    return usable, len(missing)


def _differences(clips: Mapping[str, int], labels: int, variant: Variant) -> Iterable[str]:
    for split, published in variant.clips.items():
        if clips.get(split, 0) != published:
            name = "the list" if split == ALL else f"{'fold' if split.isdecimal() else 'split'} {split}"
            yield f"{name} has {clips.get(split, 0):,} clips; {published:,} are published"
    if variant.labels is not None and labels != variant.labels:
        yield f"the list has {labels:,} labels; {variant.labels:,} are published"


def _write(out: Path, rows: Sequence[ListRow]) -> None:
    """Write the columns that any row fills."""
    used = [column for column in COLUMNS if any(getattr(row, column) not in (None, "") for row in rows)]
    below = os.path.join(os.path.abspath(out.parent), "")
    with replacing(out) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(used)
        for row in rows:
            cells = {column: getattr(row, column) for column in used}
            cells["file"] = os.path.abspath(row.file).removeprefix(below)
            writer.writerow(cells.values())
