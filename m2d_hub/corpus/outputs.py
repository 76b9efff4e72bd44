"""Where embeddings are put so that a job which is stopped, even killed, goes on later and does no file twice.

One file (``.parquet``, ``.npz``, ``.safetensors``): each finished batch is a part in the folder ``OUT.parts``
that takes its name when it is whole; at the end the parts are merged into OUT, which does likewise. What this
package did not write is neither written over nor removed. In a store of objects all is Parquet, which is read
from there in parts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from m2d_hub.corpus.dataset_output import DATASET_SUFFIX, DatasetOutput, PartWriter
from m2d_hub.corpus.folder_output import FolderOutput
from m2d_hub.corpus.folders import folder_of
from m2d_hub.corpus.formats import FORMATS
from m2d_hub.corpus.naming import Plan, plan
from m2d_hub.corpus.output_job import check_settings
from m2d_hub.corpus.records import Contents, Origin, Record
from m2d_hub.corpus.sources import Source
from m2d_hub.corpus.stores import StoreUrl
from m2d_hub.errors import ConfigError
from m2d_hub.io import PARTIAL_SUFFIX

_PART = re.compile(r"\d{8}\.(safetensors|parquet)")
_OWN_IN_PARTS = re.compile(_PART.pattern + r"(\.partial(\.body)?)?|\.lock")
_IN_STORES = (".parquet", DATASET_SUFFIX)


class Output(Protocol):
    """A place for records that remembers which files it has."""

    left: list[Source]  # files to embed, as they are named in the output
    parts: PartWriter | None  # with which workers write themselves; None: all records come to :meth:`add`

    def add(self, records: list[Record]) -> None:
        """Keeps records for good."""

    def finish(self) -> None:
        """Brings the output into its final form and lets it go."""

    def release(self) -> None:
        """Lets the output go as it stands; a later run goes on from there."""


def open_output(out: Path | StoreUrl, settings: dict[str, Any], sources: Iterable[Source]) -> Output:
    """Opens ``out`` for the embeddings of ``sources``, or opens it again.

    Args:
        out: Its suffix says the format; none means a folder.
        settings: How the embeddings are made; an output that was begun with others is refused.
        sources: The files that are going to be embedded.

    Raises:
        ConfigError: The suffix is unknown, the output belongs to another job or to somebody else, files
            changed since they were embedded, or another run is writing it.
    """
    check_suffix(out)
    if out.suffix.lower() == DATASET_SUFFIX:
        return DatasetOutput(out, settings, sources)
    if isinstance(out, StoreUrl) or (out.suffix.lower() in FORMATS and not out.is_dir()):
        return FileOutput(out, settings, sources)
    return FolderOutput(out, settings, sources)


def check_suffix(out: Path | StoreUrl) -> None:
    """Refuses names that mean a format which is not written; ``.7`` and the like are part of a folder's name.

    Raises:
        ConfigError: The message says which suffixes are known.
    """
    if isinstance(out, StoreUrl):
        if out.suffix.lower() not in _IN_STORES:
            raise ConfigError(f"{out}: in a store {' and '.join(_IN_STORES)} are written. Give such a name.")
        return
    means_format = out.suffix[1:2].isalpha() and not out.is_dir()
    if means_format and out.suffix.lower() not in (*FORMATS, DATASET_SUFFIX):
        allowed = f"{', '.join([*FORMATS, DATASET_SUFFIX])}, or none for a folder of .npy files"
        raise ConfigError(f"{out}: unknown suffix {out.suffix!r}. Use {allowed}.")


class FileOutput:
    """One file in the end, parts until then."""

    parts: PartWriter | None = None

    def __init__(self, out: Path | StoreUrl, settings: dict[str, Any], sources: Iterable[Source]):
        self._out, self._settings = out, settings
        self._home, self._format = folder_of(out.parent), FORMATS[out.suffix.lower()]
        parts = out.with_name(out.name + ".parts")
        self._parts = folder_of(parts)
        self._part_suffix = ".parquet" if isinstance(out, StoreUrl) else ".safetensors"
        self._part_format = FORMATS[self._part_suffix]
        self._refuse_foreign_parts()
        existing = [self._written()] if self._home.has(out.name) else []
        for contents in existing:
            check_settings(out, contents.settings, settings)
        with self._parts.locked(out) as self._lock:
            self._begin()
            existing += [self._part_contents(part) for part in self._part_files()]
            done = {file: origin for contents in existing for file, origin in contents.origins.items()}
            self._plan: Plan = plan(sources, done, out)
            self.left = self._plan.left
            all_files = [*done, *(source.file for source in self.left)]
            self._format.require(Path(out.name), all_files, settings["kind"])
            self._next_part = 1 + max((int(part[:8]) for part in self._part_files()), default=0)

    def add(self, records: list[Record]) -> None:
        """Keeps records as one more part."""
        origins = {record.file: self._plan.origins[record.file] for record in records}
        with self._parts.replacing(f"{self._next_part:08d}{self._part_suffix}") as partial:
            self._part_format.write(partial, Contents(self._settings, origins), records)
        self._next_part += 1

    def finish(self) -> None:
        """Merges the parts, after what the output already held, and removes them."""
        if self._part_files():
            chosen = self._chosen()
            contents = Contents(self._settings, {k: v for _, kept in chosen for k, v in kept.items()})
            with self._home.replacing(self._out.name) as partial:
                self._format.write(partial, contents, _records(chosen))
                if self._format.contents(partial) != contents:
                    raise ConfigError(
                        f"{self._out} cannot be read again as it was written; its parts are kept."
                    )
        self._let_go()

    def release(self) -> None:
        """Keeps the parts for a later run."""
        if self._part_files():
            self._lock.release()
        else:
            self._let_go()

    def _let_go(self) -> None:
        """Removes the parts, unless somebody put something beside them meanwhile."""
        self._lock.release()
        if all(_OWN_IN_PARTS.fullmatch(name) for name in self._parts.names()):
            self._parts.remove_all()

    def _refuse_foreign_parts(self) -> None:
        if self._parts.is_other:
            raise ConfigError(
                f"{self._parts}, where finished batches are kept, is a link or a file; move it away, or give "
                "another output."
            )
        if foreign := [name for name in self._parts.names() if not _OWN_IN_PARTS.fullmatch(name)]:
            raise ConfigError(
                f"{self._parts}, where finished batches are kept, holds {foreign[0]!r}, which m2d-hub embed "
                "did not write; move it away, or give another output."
            )

    def _begin(self) -> None:
        for name in self._parts.names():
            if PARTIAL_SUFFIX in name:
                self._parts.remove(name)
        for part in self._part_files()[:1]:
            check_settings(self._out, self._part_contents(part).settings, self._settings)

    def _part_files(self) -> list[str]:
        return [name for name in self._parts.names() if _PART.fullmatch(name)]

    def _part_contents(self, part: str) -> Contents:
        return self._part_format.contents(self._parts.readable(part), f"{self._parts}/{part}")

    def _written(self) -> Contents:
        return self._format.contents(self._home.readable(self._out.name), self._out)

    def _chosen(self) -> list[tuple[Iterator[Record], dict[str, Origin]]]:
        """Records of the output so far and of each part, with the files to take of each, none twice."""
        stores = []
        if self._home.has(self._out.name):
            records = self._format.records(self._home.readable(self._out.name), self._out)
            stores.append((self._written(), records))
        for part in self._part_files():
            records = self._part_format.records(self._parts.readable(part), f"{self._parts}/{part}")
            stores.append((self._part_contents(part), records))
        seen: set[str] = set()
        chosen = []
        for contents, records in stores:
            kept = {file: origin for file, origin in contents.origins.items() if file not in seen}
            seen.update(kept)
            chosen.append((records, kept))
        return chosen


def _records(chosen: Iterable[tuple[Iterator[Record], dict[str, Origin]]]) -> Iterator[Record]:
    return itertools.chain.from_iterable(
        (record for record in records if record.file in kept) for records, kept in chosen
    )
