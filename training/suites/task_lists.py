"""The list of a task: the user's own, or one that is made of the data set's folder.

FOLDER holds, for a data set such as ``gtzan``, the list ``gtzan.csv``, or the data set's folder as it is
published (``gtzan/``, or its published name), and where the split is somebody else's file, that as
``gtzan-split.csv`` or in ``gtzan-split/``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import reading_file, replacing

from ..data.lists.make import find_dataset, make_list
from ..runs.folder import make_folder

# Names that the data sets' folders have as published, beside those of make_list; spelt by _key.
PUBLISHED_FOLDERS = {
    "esc50": ("esc50master",),
    "us8k": ("urbansound8k",),
    "spcv1": ("speechcommandsv001",),
    "spcv2": ("speechcommandsv002",),
    "vc1": ("voxceleb1",),
    "gtzan": ("genres", "genresoriginal"),
    "surge": ("pitchaudiodatasetsurge",),
    "as20k": ("audioset",),
    "icbhi2017": ("icbhifinaldatabase",),
    "sprsound": ("biocas2022",),
    "imagenet": ("imagenet1k", "ilsvrc2012", "imagenetobjectlocalizationchallenge"),
}


class NotThereError(ConfigError):
    """The folder holds nothing of a data set."""


@dataclass(frozen=True)
class TaskList:
    """A list, and what is to be known about it."""

    path: Path
    has_valid: bool  # whether it has a validation split
    note: str = ""  # what is missing or differs from what is published


def task_list(dataset: str, folder: Path, out: Path) -> TaskList:
    """The list of a data set, made if there is none yet.

    Args:
        dataset: Name of :func:`m2d_training.make_list`.
        folder: Holds data sets, see above.
        out: Folder of the lists that are made; one that is there is used again.

    Raises:
        NotThereError: The folder holds nothing of the data set.
        ConfigError: What it holds cannot be used.
    """
    own = folder / f"{dataset}.csv"
    if own.is_file():
        return _read(own, "")
    path, notes = out / f"{dataset}.csv", out / f"{dataset}.json"
    if not (path.is_file() and notes.exists()):
        make_folder(out)
        note = _make(dataset, folder, path)
        with replacing(notes) as partial:
            partial.write_text(json.dumps({"note": note}) + "\n", encoding="utf-8")
    way_out = "Delete it: the list is then made again."
    with reading_file(notes, "notes of a list", way_out, CheckpointError):
        note = json.loads(notes.read_text(encoding="utf-8"))["note"]
    return _read(path, str(note))


def _make(dataset: str, folder: Path, path: Path) -> str:
    """Makes a list; returns what is missing or differs."""
    place, split = _dataset_folder(dataset, folder), folder / f"{dataset}-split"
    files = sorted(file for file in split.iterdir() if file.is_file()) if split.is_dir() else []
    if split.with_suffix(".csv").is_file():
        files.append(split.with_suffix(".csv"))
    try:
        made = make_list(dataset, place, path, split_files=files)
    except ConfigError as error:
        if files or not find_dataset(dataset).split:
            raise
        raise ConfigError(f"{error} Put it into {split}/, or a CSV at {split}.csv.") from error
    missing = [f"{made.missing:,} clips are missing"] if made.missing else []
    return "; ".join([*missing, *made.differences])


def _dataset_folder(dataset: str, folder: Path) -> Path:
    wanted = (_key(dataset), *PUBLISHED_FOLDERS.get(dataset, ()))
    there = {_key(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for key in wanted:
        if key in there:
            return there[key]
    title = find_dataset(dataset).title
    raise NotThereError(f"{folder} holds neither {dataset}.csv nor a folder {dataset}/ of {title}")


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _read(path: Path, note: str) -> TaskList:
    splits = {row.cells["split"] for row in read_table(path, ["file", "label", "split"])}
    return TaskList(path, "valid" in splits, note)
