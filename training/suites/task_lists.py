"""The list of a task: the user's own, or one made from the data set's folder.

For a data set such as ``gtzan``, the folder of data sets contains the list ``gtzan.csv``, or the data set as
published (``gtzan/``, or its published name). A split published by others is ``gtzan-split.csv`` or in
``gtzan-split/``.
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

# Published names of the data sets' folders, besides those of make_list, as _key returns them.
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


class DatasetMissingError(ConfigError):
    """The folder contains neither a data set nor its list."""


@dataclass(frozen=True)
class TaskList:
    """A list with notes about it."""

    path: Path
    has_valid: bool  # whether it has a validation split
    note: str = ""  # what is missing or differs from what is published


def task_list(dataset: str, folder: Path, out: Path) -> TaskList:
    """Return the list of a data set, and make it if necessary.

    Raises:
        DatasetMissingError: The folder does not contain the data set.
        ConfigError: Its contents cannot be used.
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
    with reading_file(notes, "notes of a list", "Delete it to make the list again.", CheckpointError):
        note = json.loads(notes.read_text(encoding="utf-8"))["note"]
    return _read(path, str(note))


def _make(dataset: str, folder: Path, path: Path) -> str:
    """Make a list; return what is missing or differs."""
    source, split = _dataset_folder(dataset, folder), folder / f"{dataset}-split"
    files = sorted(file for file in split.iterdir() if file.is_file()) if split.is_dir() else []
    if split.with_suffix(".csv").is_file():
        files.append(split.with_suffix(".csv"))
    try:
        made = make_list(dataset, source, path, split_files=files)
    except ConfigError as error:
        if files or not find_dataset(dataset).split:
            raise
        raise ConfigError(f"{error} Put it into {split}/, or a CSV at {split}.csv.") from error
    missing = [f"{made.missing:,} clips are missing"] if made.missing else []
    return "; ".join([*missing, *made.differences])


def _dataset_folder(dataset: str, folder: Path) -> Path:
    folders = {_key(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
    for key in (_key(dataset), *PUBLISHED_FOLDERS.get(dataset, ())):
        if key in folders:
            return folders[key]
    title = find_dataset(dataset).title
    raise DatasetMissingError(f"{folder} contains neither {dataset}.csv nor a folder {dataset}/ of {title}")


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _read(path: Path, note: str) -> TaskList:
    splits = {row.cells["split"] for row in read_table(path, ["file", "label", "split"])}
    return TaskList(path, "valid" in splits, note)
