"""The suites: their tasks, the figures of the paper and the authors, and the list of each task.

Clips are cropped or zero-padded to the durations of the paper's evaluation platform. Figures are in percent.

For a data set such as ``gtzan``, the folder of data sets contains the list ``gtzan.csv``, or the data set as
published (``gtzan/``, or its published name). A split published by others is ``gtzan-split.csv`` or in
``gtzan-split/``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import reading_file, replacing

from ..data.lists.make import find_dataset, make_list
from ..runs.folder import make_folder

LEARNING_RATE = 3e-5  # of linear evaluation (paper, section IV-B)
VALID_SHARE = 0.1  # of the training clips, for lists without a validation split, as on the platform


@dataclass(frozen=True)
class SuiteTask:
    """A task: one list with its evaluation."""

    name: str
    dataset: str  # name as for make_list
    duration_s: float | None = None  # of the cropped or padded clips; None: as in the preset
    preset: str | None = None  # of fine-tuning; None: linear evaluation
    paper: Mapping[str, float] = field(default_factory=dict)  # by the paper's name of the model
    authors: Mapping[str, float] = field(default_factory=dict)  # published with weights, by model name


@dataclass(frozen=True)
class Suite:
    """Tasks that are run one after another and reported in one table."""

    name: str
    about: str
    seeds: int
    tasks: tuple[SuiteTask, ...]
    authors: Mapping[str, float] = field(default_factory=dict)  # published means over all tasks

    @property
    def is_linear(self) -> bool:
        """Whether its tasks are linear evaluations rather than fine-tunings."""
        return self.tasks[0].preset is None


def _finetuned(
    name: str,
    paper: Mapping[str, float],
    authors: Mapping[str, float] | None = None,
    dataset: str | None = None,
) -> SuiteTask:
    return SuiteTask(name, dataset or name, preset=name, paper=paper, authors=authors or {})


_M2D, _M2D_AS = "M2D/0.7", "M2D-AS/0.7"


def _linear(name: str, duration_s: float, m2d: float, m2d_as: float) -> SuiteTask:
    """Return a task with its figures in Tables III and V."""
    return SuiteTask(name, name, duration_s, paper={_M2D: m2d, _M2D_AS: m2d_as})


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "paper-linear",
            "the nine tasks of Table III by linear evaluation",
            seeds=6,
            tasks=(
                _linear("esc50", 5.0, 91.3, 96.1),
                _linear("us8k", 4.0, 87.6, 89.8),
                _linear("spcv2", 1.0, 96.0, 95.7),
                _linear("vc1", 8.2, 73.4, 68.3),
                _linear("voxforge", 5.8, 98.3, 98.4),
                _linear("cremad", 2.5, 73.0, 73.1),
                _linear("gtzan", 30.0, 84.1, 86.9),
                _linear("nsynth", 4.0, 75.7, 75.2),
                _linear("surge", 4.0, 42.1, 41.7),
            ),
            authors={"m2d-0.7": 80.2, "m2d-as-0.7": 80.6, "m2d-clap-2024": 80.8, "m2d-clap-2025": 78.8},
        ),
        Suite(
            "paper-finetune",
            "the five tasks of Table II by fine-tuning",
            seeds=6,
            tasks=(
                _finetuned(
                    "as2m",
                    dataset="audioset",
                    paper={_M2D: 47.9, _M2D_AS: 48.5},
                    authors={
                        "m2d-0.7": 47.9,
                        "m2d-as-0.7": 48.5,
                        "m2d-clap-2024": 48.5,
                        "m2d-as-0.7-32k": 48.0,
                        "m2d-clap-2025": 49.0,
                    },
                ),
                _finetuned("as20k", paper={_M2D: 38.6, _M2D_AS: 41.8}),
                _finetuned("esc50", paper={_M2D: 96.0, _M2D_AS: 97.2}),
                _finetuned("spcv2", paper={_M2D: 98.4, _M2D_AS: 98.4}),
                _finetuned("vc1", paper={_M2D: 96.3, _M2D_AS: 95.6}),
            ),
        ),
        Suite(
            "icbhi",
            "ICBHI 2017, the official 60/40, by fine-tuning (section IV-E)",
            seeds=5,
            tasks=(_finetuned("icbhi2017", paper={_M2D: 61.2, f"{_M2D} 16x4": 61.93, "M2D-X": 63.29}),),
        ),
        Suite(
            "sprsound",
            "SPRSound, tested on other patients, by fine-tuning (section IV-E4)",
            seeds=5,
            tasks=(_finetuned("sprsound", paper={"M2D-X": 89.77}),),
        ),
        Suite(
            "imagenet",
            "ImageNet-1K by fine-tuning (appendix A), of an image model",
            seeds=1,  # the paper does not state their number
            tasks=(_finetuned("imagenet", paper={"MAE": 83.22, "M2D all patches": 83.22, "M2D": 83.35}),),
        ),
    )
}


def find_suite(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        ConfigError: The name is unknown; the message lists the suites.
    """
    if name not in SUITES:
        raise ConfigError(f"Unknown suite {name!r}. Available: {', '.join(SUITES)}.")
    return SUITES[name]


def chosen_tasks(suite: Suite, names: tuple[str, ...]) -> tuple[SuiteTask, ...]:
    """Return the named tasks of a suite in its order, or all tasks without names.

    Raises:
        ConfigError: A name is not one of its tasks.
    """
    known = [task.name for task in suite.tasks]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"tasks of {suite.name} are {', '.join(known)}; got {', '.join(unknown)}.")
    return tuple(task for task in suite.tasks if not names or task.name in names)


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
