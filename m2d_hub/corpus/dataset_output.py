"""A folder of Parquet files, each written whole where its batch was embedded, by one machine or by many.

Nothing passes through the process that was started but names: it lists the parts, and writes
``_index.parquet``, which says where each file's row is. Readers of data sets, such as ``pyarrow.dataset`` and
``pandas.read_parquet``, take the folder as one table and pass over what begins with ``_``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2d_hub.corpus.naming import Plan, plan
from m2d_hub.corpus.output_job import LOCK, check_settings, lock_kept
from m2d_hub.corpus.parquet import ROW_GROUP_BYTES, Parquet, write_index
from m2d_hub.corpus.records import Contents, Origin, Record
from m2d_hub.corpus.sources import Source
from m2d_hub.errors import ConfigError
from m2d_hub.files import replacing

DATASET_SUFFIX = ".dataset"
_INDEX = "_index.parquet"
_PART_RECORDS = 1024
_OWN = re.compile(r"part-[0-9a-f]{16}\.parquet(\.partial)?|_index\.parquet(\.partial)?|\.lock")


@dataclass(frozen=True)
class PartWriter:
    """Writes parts into the folder, from any process that sees it."""

    out: Path
    settings: dict[str, Any]

    def write(self, records: list[Record], origins: dict[str, Origin]) -> str:
        """Writes records as one part; the same files give the same name, which is returned."""
        names = "\n".join(record.file for record in records).encode("utf-8", "backslashreplace")
        part = self.out / f"part-{hashlib.sha256(names).hexdigest()[:16]}.parquet"
        with replacing(part) as partial:
            Parquet().write(partial, Contents(self.settings, origins), records)
        return part.name


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

    def __init__(self, out: Path, settings: dict[str, Any], sources: Iterable[Source]):
        self._out, self._format = out, Parquet()
        self.parts = self._writer = PartWriter(out.absolute(), settings)
        self._buffer = PartBuffer(self._writer)
        self._refuse_foreign()
        with lock_kept(out, out) as self._lock:
            done: dict[str, Origin] = {}
            for contents in self._contents().values():
                check_settings(out, contents.settings, settings)
                done |= contents.origins
            self._plan: Plan = plan(sources, done, out)
            self.left = self._plan.left
            self._format.require(out, [], settings["kind"])

    def add(self, records: list[Record]) -> None:
        """Keeps records in memory, and for good once there are enough for a part."""
        self._buffer.add(records, self._plan.origins)

    def finish(self) -> None:
        """Removes rows that are there twice, writes the index, and lets the folder go."""
        self._buffer.flush()
        if files := self._files_once():
            with replacing(self._out / _INDEX) as partial:
                write_index(partial, sorted(files.items()))
        self.release()

    def release(self) -> None:
        """Lets the folder go as it stands."""
        try:
            self._buffer.flush()
        finally:
            self._lock.release()
        if not _part_files(self._out):
            (self._out / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something
                self._out.rmdir()

    def _files_once(self) -> dict[str, list[str]]:
        """Files by part, none twice: a worker may have finished a part while the next job looked."""
        seen: set[str] = set()
        files: dict[str, list[str]] = {}
        for part, contents in self._contents().items():
            if part.name in files:  # what was left of another one is the whole of this
                continue
            left = {file: origin for file, origin in contents.origins.items() if file not in seen}
            name = part.name
            if len(left) < len(contents.origins):
                kept = [record for record in self._format.records(part) if record.file in left]
                name = self._writer.write(kept, left) if kept else ""
                part.unlink()
            if left:
                files[name] = list(left)
            seen |= left.keys()
        return files

    def _contents(self) -> dict[Path, Contents]:
        return {part: self._format.contents(part) for part in _part_files(self._out)}

    def _refuse_foreign(self) -> None:
        if self._out.is_symlink() or (self._out.exists() and not self._out.is_dir()):
            raise ConfigError(f"{self._out} is a link or a file; a name in {DATASET_SUFFIX} is a folder.")
        names: Iterator[str] = (path.name for path in self._out.glob("*"))
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
    contents = [Parquet().contents(part) for part in _part_files(out)]
    if not contents:
        raise ConfigError(f"{out} holds no embeddings: run the m2d-hub embed that writes it again.")
    for other in contents[1:]:
        check_settings(out, contents[0].settings, other.settings)
    return Contents(contents[0].settings, {k: v for part in contents for k, v in part.origins.items()})


def dataset_records(out: Path) -> Iterator[Record]:
    """The records of a folder of parts, one at a time."""
    for part in _part_files(out):
        yield from Parquet().records(part)


def _part_files(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))
