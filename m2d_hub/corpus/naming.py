"""Names in outputs: each is text, stands for one file only, and fits where it goes; and which files are done.

A file is known by its name, by where it lies, and by its size and time of change: another file of the same
name gets a name of its own, and one that changed since it was embedded is refused.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from m2d_hub.corpus.records import Origin
from m2d_hub.corpus.sources import Source, possible_names
from m2d_hub.errors import ConfigError, first_few
from m2d_hub.io import as_text

ARRAY, TIMES = ".npy", ".timestamps_s.npy"  # suffixes of what a folder keeps of a file
_MOST_BYTES = 255 - len(TIMES + ".partial")  # of a name, before its suffix
_MOST_PATH_BYTES = 2_000
_MOST_NAMED = 5  # files in a message


@dataclass(frozen=True)
class Plan:
    """The files that are left to embed, under their names in the output, and what each was made of."""

    left: list[Source]
    origins: dict[str, Origin]  # by name


def plan(sources: Iterable[Source], done: Mapping[str, Origin], out: object) -> Plan:
    """Names files, and tells those that are done from those that are left.

    Args:
        sources: The files.
        done: What the output has, by name.
        out: For messages.

    Raises:
        ConfigError: Files changed since they were embedded; the message names them.
    """
    left: list[Source] = []
    taken, changed = dict(done), []
    keys = {_npz_key(name) for name in done}
    for source in sources:
        origin = Origin.of(source.path)
        for name in possible_names(source):
            known = taken.get(name)
            if known is None and _npz_key(name) not in keys:
                taken[name] = origin
                keys.add(_npz_key(name))
                left.append(replace(source, file=name))
                break
            if known is not None and known.place == origin.place:
                if known != origin and not origin.is_missing:
                    changed.append(name)
                break
    if changed:
        raise ConfigError(
            f"{first_few(changed, _MOST_NAMED)} changed since {out} got their embeddings (by size or "
            "time of change). Give another output, or delete what is there to embed all anew."
        )
    return Plan(left, {source.file: taken[source.file] for source in left})


class FolderNames:
    """Places for arrays within an output folder, none in the way of another or of what is there."""

    def __init__(self, out: Path, taken: Iterable[str], reserved: Iterable[str]):
        """Takes over names that the folder's index holds; ``reserved`` files are no place for folders."""
        self._out = out
        self._files = {_folded(name) for name in reserved}
        self._folders: set[str] = set()
        for name in taken:
            self._claim(name)

    def name(self, source: Source, left: frozenset[str] | set[str]) -> str:
        """A relative path, without suffix, that the array of ``source`` takes from now on.

        Args:
            source: Named as in the output.
            left: Names whose arrays a killed run may have left there.
        """
        relative = PurePosixPath(as_text(source.relative.as_posix()))
        digest = hashlib.sha256(source.file.encode()).hexdigest()[:12]
        flat = relative.name.encode()[: _MOST_BYTES - len(digest) - 1].decode(errors="ignore")
        for name in (str(relative), f"{relative}.{digest}", f"{flat}.{digest}"):
            if self._fits(name) and self._is_free(name, left):
                self._claim(name)
                return name
        raise ConfigError(
            f"{self._out} has no place for the embedding of {source.file}: {flat}.{digest}{ARRAY} is there "
            "already, and not in its index. Move it away, or give another output."
        )

    def _claim(self, name: str) -> None:
        self._files |= {_folded(name + suffix) for suffix in (ARRAY, TIMES)}
        self._folders |= {_folded(str(parent)) for parent in PurePosixPath(name).parents}

    def _fits(self, name: str) -> bool:
        *folders, last = (part.encode() for part in name.split("/"))
        longest = max(map(len, folders), default=0)
        return len(last) <= _MOST_BYTES and longest <= 255 and len(name.encode()) <= _MOST_PATH_BYTES

    def _is_free(self, name: str, left: frozenset[str] | set[str]) -> bool:
        files = [_folded(name + suffix) for suffix in (ARRAY, TIMES)]
        parents = [parent for parent in PurePosixPath(name).parents if parent.name]
        if any(file in self._files or file in self._folders for file in files):
            return False
        if any(_folded(str(parent)) in self._files for parent in parents):
            return False
        for parent in (
            self._out / parent for parent in parents
        ):  # none is a link out of the folder, or a file
            if os.path.lexists(parent) and (parent.is_symlink() or not parent.is_dir()):
                return False
        return name in left or not any(
            os.path.lexists(self._out / (name + suffix)) for suffix in (ARRAY, TIMES)
        )


def _npz_key(name: str) -> str:
    """A name as numpy.load looks for it, to which ``d.wav`` and ``d.wav.npy`` are one."""
    return name.removesuffix(ARRAY)


def _folded(name: str) -> str:
    """A name as file systems compare it that tell neither letter case nor ways of writing accents apart."""
    return unicodedata.normalize("NFC", name).casefold()
