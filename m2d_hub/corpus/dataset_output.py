"""A folder of Parquet files, each written whole where its batch was embedded, by one machine or by many.

Nothing passes through the process that was started but names: it lists the parts, and writes
``_index.parquet``, which says where each file's row is. Readers of data sets, such as ``pyarrow.dataset`` and
``pandas.read_parquet``, take the folder as one table and pass over what begins with ``_``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2d_hub.corpus.folders import Folder, folder_of
from m2d_hub.corpus.naming import Plan, plan
from m2d_hub.corpus.output_job import check_settings
from m2d_hub.corpus.parquet import ROW_GROUP_BYTES, Parquet, write_index
from m2d_hub.corpus.records import Contents, Origin, Record
from m2d_hub.corpus.sources import Source
from m2d_hub.corpus.stores import StoreUrl
from m2d_hub.errors import ConfigError

DATASET_SUFFIX = ".dataset"
_INDEX = "_index.parquet"
_PART_RECORDS = 1024
_PART = re.compile(r"part-.*\.parquet")
_OWN = re.compile(r"part-[0-9a-f]{16}\.parquet(\.partial)?|_index\.parquet(\.partial)?|\.lock")


@dataclass(frozen=True)
class PartWriter:
    """Writes parts into the folder, from any process that sees it."""

    folder: Folder
    settings: dict[str, Any]

    def write(self, records: list[Record], origins: dict[str, Origin]) -> str:
        """Writes records as one part; the same files give the same name, which is returned."""
        names = "\n".join(record.file for record in records).encode("utf-8", "backslashreplace")
        part = f"part-{hashlib.sha256(names).hexdigest()[:16]}.parquet"
        with self.folder.replacing(part) as partial:
            Parquet().write(partial, Contents(self.settings, origins), records)
        return part


class PartBuffer:
    """Gathers the records of many batches into a part."""

    def __init__(self, writer: PartWriter):
        self._writer = writer
        self._records: list[Record] = []
        self._origins: dict[str, Origin] = {}
        self._num_bytes = 0

    def add(self, records: list[Record], origins: dict[str, Origin]) -> None:
        """Takes records, and writes a part once there are enough."""
        self._records += records
        self._origins |= {record.file: origins[record.file] for record in records}
        self._num_bytes += sum(record.num_bytes for record in records)
        if len(self._records) >= _PART_RECORDS or self._num_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what there is."""
        if self._records:
            self._writer.write(self._records, self._origins)
        self._records, self._origins, self._num_bytes = [], {}, 0


class DatasetOutput:
    """A folder of parts, and the index of what they hold."""

    parts: PartWriter | None

    def __init__(self, out: Path | StoreUrl, settings: dict[str, Any], sources: Iterable[Source]):
        self._out, self._format, self._folder = out, Parquet(), folder_of(out)
        self.parts = self._writer = PartWriter(self._folder, settings)
        self._buffer = PartBuffer(self._writer)
        self._format.require(Path(out.name), [], settings["kind"])
        self._refuse_foreign()
        with self._folder.locked(out) as self._lock:
            done: dict[str, Origin] = {}
            for contents in self._contents().values():
                check_settings(out, contents.settings, settings)
                done |= contents.origins
            self._plan: Plan = plan(sources, done, out)
            self.left = self._plan.left

    def add(self, records: list[Record]) -> None:
        """Keeps records in memory, and for good once there are enough for a part."""
        self._buffer.add(records, self._plan.origins)

    def finish(self) -> None:
        """Removes rows that are there twice, writes the index, and lets the folder go."""
        self._buffer.flush()
        if files := self._files_once():
            with self._folder.replacing(_INDEX) as partial:
                write_index(partial, sorted(files.items()))
        self.release()

    def release(self) -> None:
        """Lets the folder go as it stands."""
        try:
            self._buffer.flush()
        finally:
            self._lock.release()
        if not _parts(self._folder):
            self._folder.remove_empty()

    def _files_once(self) -> dict[str, list[str]]:
        """Files by part, none twice: a worker may have finished a part while the next job looked."""
        seen: set[str] = set()
        files: dict[str, list[str]] = {}
        for part, contents in self._contents().items():
            if part in files:  # what was left of another one is the whole of this
                continue
            left = {file: origin for file, origin in contents.origins.items() if file not in seen}
            name = part
            if len(left) < len(contents.origins):
                kept = [record for record in _records(self._folder, part) if record.file in left]
                name = self._writer.write(kept, left) if kept else ""
                self._folder.remove(part)
            if left:
                files[name] = list(left)
            seen |= left.keys()
        return files

    def _contents(self) -> dict[str, Contents]:
        return {part: _part_contents(self._folder, part) for part in _parts(self._folder)}

    def _refuse_foreign(self) -> None:
        if self._folder.is_other:
            raise ConfigError(f"{self._out} is a link or a file; a name in {DATASET_SUFFIX} is a folder.")
        names = self._folder.names()
        if foreign := sorted(name for name in names if not _OWN.fullmatch(name)):
            raise ConfigError(
                f"{self._out} holds {foreign[0]!r}, which m2d-hub embed did not write; move it away, or give "
                "another output."
            )


def dataset_contents(out: Path) -> Contents:
    """Settings and names in a folder of parts.

    Raises:
        ConfigError: It holds none, or parts that this package did not write, or of several jobs.
    """
    folder = folder_of(out)
    contents = [_part_contents(folder, part) for part in _parts(folder)]
    if not contents:
        raise ConfigError(f"{out} holds no embeddings: run the m2d-hub embed that writes it again.")
    for other in contents[1:]:
        check_settings(out, contents[0].settings, other.settings)
    return Contents(contents[0].settings, {k: v for part in contents for k, v in part.origins.items()})


def dataset_records(out: Path) -> Iterator[Record]:
    """The records of a folder of parts, one at a time."""
    folder = folder_of(out)
    for part in _parts(folder):
        yield from _records(folder, part)


def _parts(folder: Folder) -> list[str]:
    return [name for name in folder.names() if _PART.fullmatch(name)]


def _part_contents(folder: Folder, part: str) -> Contents:
    return Parquet().contents(folder.readable(part), f"{folder}/{part}")


def _records(folder: Folder, part: str) -> Iterator[Record]:
    return Parquet().records(folder.readable(part), f"{folder}/{part}")
