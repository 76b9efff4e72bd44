"""Files of a data set on disk: which exist, and those of splits and classes in folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.sources import files_below
from m2d_hub.errors import ConfigError

from .annotations import SPLIT_NAMES
from .images import IMAGE_SUFFIXES

SUFFIXES = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES)


class FileLookup:
    """Check which files exist, listing each folder once: one call per file is slow on network disks."""

    def __init__(self) -> None:
        self._names = cache(_names_in)
        self._audio = cache(self._audio_by_stem)

    def has(self, file: str) -> bool:
        """Return whether the file exists."""
        folder, name = os.path.split(file)
        # Some file systems find a file by spellings other than the one that they list.
        return name in self._names(folder) or os.path.isfile(file)

    def find_audio(self, file: str) -> str | None:
        """Return the file, or audio of its name in another format (``a.flac`` for ``a.wav``), or None."""
        if self.has(file):
            return file
        folder, name = os.path.split(file)
        other = self._audio(folder).get(os.path.splitext(name)[0])
        return other and os.path.join(folder, other)

    def _audio_by_stem(self, folder: str) -> dict[str, str]:
        parts = {name: os.path.splitext(name) for name in sorted(self._names(folder))}
        return {stem: name for name, (stem, suffix) in parts.items() if suffix.lower() in AUDIO_SUFFIXES}


def _names_in(folder: str) -> frozenset[str]:
    """Return the names in a folder, without dangling links; empty for one that cannot be listed."""
    try:
        with os.scandir(folder or ".") as found:
            return frozenset(
                item.name for item in found if not item.is_symlink() or os.path.exists(item.path)
            )
    except (OSError, ValueError):  # ValueError: a null character in the name
        return frozenset()


def audio_below(folder: Path) -> list[Path]:
    """Return all audio files below a folder, sorted; linked folders are followed, hidden files skipped."""
    return sorted(path for path in files_below(folder) if path.suffix.lower() in AUDIO_SUFFIXES)


def class_folders(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield file, class and split of the clips in ``train/CLASS/``, ``valid/CLASS/`` and ``test/CLASS/``.

    Synonyms such as ``val/`` are accepted. Where no test clips are labelled, as in ImageNet, the validation
    clips are the test clips.

    Raises:
        ConfigError: The folder has no training clips in folders of their classes.
    """
    splits = {
        path: SPLIT_NAMES.get(path.name.casefold()) for path in sorted(folder.iterdir()) if path.is_dir()
    }
    classes = {path: _class_names(path) for path, split in splits.items() if split}
    found = {splits[path] for path, names in classes.items() if names}
    if "train" not in found:
        raise ConfigError(
            f"{folder} has no training clips in folders of their classes; it must hold train/CLASS/FILE, and "
            "valid/ and test/ likewise, or be given as a CSV with file, label and split."
        )
    for path, names in classes.items():
        split = "test" if "test" not in found and splits[path] == "valid" else splits[path]
        for name in names:
            files = sorted(file for file in files_below(path / name) if file.suffix.lower() in SUFFIXES)
            label = unicodedata.normalize("NFC", name)
            yield from ((os.fspath(file), label, split or "") for file in files)


def _class_names(split: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(split) if item.is_dir() and not item.name.startswith("."))
