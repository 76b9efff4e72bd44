"""Labelled clips as folders: one for each split, and in it one for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.sources import files_below
from m2d_hub.errors import ConfigError

from .images import IMAGE_SUFFIXES
from .lists.dataset import ListRow
from .lists.splits import SPLIT_NAMES, standard_split

SUFFIXES = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES)


def class_folders(folder: Path) -> Iterator[ListRow]:
    """The clips of ``train/CLASS/``, ``valid/CLASS/`` and ``test/CLASS/``, or of ``val/`` and the like.

    Where no test clips are labelled, as in ImageNet, the validation clips are those of the test.

    Args:
        folder: Holds the splits.

    Raises:
        ConfigError: It has no training clips in folders of their classes.
    """
    splits = {path: standard_split(path.name) for path in sorted(folder.iterdir()) if path.is_dir()}
    classes = {path: _class_names(path) for path, split in splits.items() if split in SPLIT_NAMES.values()}
    found = {splits[path] for path, names in classes.items() if names}
    if "train" not in found:
        raise ConfigError(
            f"{folder} has no training clips in folders of their classes: it must hold train/CLASS/FILE, and "
            "valid/ and test/ likewise, or be given as a CSV with file, label and split."
        )
    for path, names in classes.items():
        split = "test" if "test" not in found and splits[path] == "valid" else splits[path]
        for name in names:
            files = (file for file in files_below(path / name) if file.suffix.lower() in SUFFIXES)
            yield from (ListRow(os.fspath(file), name, split or "") for file in sorted(files))


def _class_names(split: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir())
