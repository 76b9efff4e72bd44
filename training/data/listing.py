"""Which files there are, asked for many at once."""

from __future__ import annotations

import os
from functools import cache

from m2d_hub.audio import AUDIO_SUFFIXES


class FolderListing:
    """Looks for files, listing each folder once: a call for each file takes long on a network's disk."""

    def __init__(self) -> None:
        self._names = cache(lambda folder: frozenset(os.listdir(folder) if os.path.isdir(folder) else ()))
        self._audio = cache(self._audio_by_stem)

    def has(self, file: str) -> bool:
        """Whether the file exists."""
        folder, name = os.path.split(file)
        # Some file systems know a file by other spellings than the one that they list.
        return name in self._names(folder) or os.path.isfile(file)

    def find_audio(self, file: str) -> str | None:
        """The file, or else audio of its name in another format, ``a.flac`` for ``a.wav``; or None."""
        if self.has(file):
            return file
        folder, name = os.path.split(file)
        other = self._audio(folder).get(os.path.splitext(name)[0])
        return other and os.path.join(folder, other)

    def _audio_by_stem(self, folder: str) -> dict[str, str]:
        parts = {name: os.path.splitext(name) for name in sorted(self._names(folder))}
        return {stem: name for name, (stem, suffix) in parts.items() if suffix.lower() in AUDIO_SUFFIXES}
