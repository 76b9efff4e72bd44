"""Where embeddings are put so that a job which is stopped, even killed, goes on later and does no file twice.

One file (``.parquet``, ``.npz``, ``.safetensors``): each finished batch is a part in the folder ``OUT.parts``
that takes its name when it is whole; at the end the parts are merged into OUT, which does likewise. A
folder: each array takes its name when it is whole, and then a line in ``index.csv``.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from m2d_hub.corpus.formats import FORMATS, Safetensors
from m2d_hub.corpus.output_job import check_settings, lock_kept, write_settings
from m2d_hub.corpus.records import Contents, Record, foreign_file
from m2d_hub.corpus.sources import Source, output_names
from m2d_hub.errors import ConfigError
from m2d_hub.files import replacing


class Output(Protocol):
    """A place for records that remembers which files it has."""

    done: set[str]

    def add(self, records: list[Record]) -> None:
        """Keeps records for good."""

    def finish(self) -> None:
        """Brings the output into its final form and lets it go."""

    def release(self) -> None:
        """Lets the output go as it stands; a later run goes on from there."""


def open_output(out: Path, settings: dict[str, Any], sources: Iterable[Source]) -> Output:
    """Opens ``out`` for the embeddings of ``sources``, or opens it again.

    Args:
        out: Its suffix says the format; none means a folder.
        settings: How the embeddings are made; an output that was begun with others is refused.
        sources: The files that are going to be embedded.

    Raises:
        ConfigError: The suffix is unknown, the output belongs to another job, or another run is writing it.
    """
    check_suffix(out)
    if out.suffix.lower() in FORMATS and not out.is_dir():
        return FileOutput(out, settings)
    return FolderOutput(out, settings, sources)


def check_suffix(out: Path) -> None:
    """Refuses names that mean a format which is not written; ``.7`` and the like are part of a folder's name.

    Raises:
        ConfigError: The message says which suffixes are known.
    """
    means_format = out.suffix[1:2].isalpha() and not out.is_dir()
    if means_format and out.suffix.lower() not in FORMATS:
        allowed = f"{', '.join(FORMATS)}, or none for a folder of .npy files"
        raise ConfigError(f"--out {out}: unknown suffix {out.suffix!r}. Use {allowed}.")


class FileOutput:
    """One file in the end, parts until then."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        self._out, self._settings = out, settings
        self._format = FORMATS[out.suffix.lower()]
        self._parts = out.with_name(out.name + ".parts")
        self._part_format = Safetensors()
        existing = [self._format.contents(out)] if out.exists() else []
        for contents in existing:
            check_settings(out, contents.settings, settings)
        self._format.require()
        with lock_kept(self._parts, out) as self._lock:
            self._begin()
            existing += [self._part_format.contents(part) for part in self._part_files()]
            self.done = {file for contents in existing for file in contents.files}
            self._next_part = 1 + max((int(part.stem) for part in self._part_files()), default=0)

    def add(self, records: list[Record]) -> None:
        """Keeps records as one more part."""
        part = self._parts / f"{self._next_part:08d}.safetensors"
        files = [record.file for record in records]
        with replacing(part) as partial:
            self._part_format.write(partial, Contents(self._settings, files), records)
        self._next_part += 1
        self.done.update(files)

    def finish(self) -> None:
        """Merges the parts, after what the output already held, and removes them."""
        if self._part_files():
            chosen = self._chosen()
            files = [file for _, kept in chosen for file in kept]
            with replacing(self._out) as partial:
                self._format.write(partial, Contents(self._settings, files), _records(chosen))
        self._lock.release()
        shutil.rmtree(self._parts)

    def release(self) -> None:
        """Keeps the parts for a later run."""
        self._lock.release()
        if not self._part_files():
            shutil.rmtree(self._parts)

    def _begin(self) -> None:
        for leftover in self._parts.glob("*.partial*"):
            leftover.unlink()
        for part in self._part_files()[:1]:
            check_settings(self._out, self._part_format.contents(part).settings, self._settings)

    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob("[0-9]*.safetensors"))

    def _chosen(self) -> list[tuple[Iterator[Record], dict[str, None]]]:
        """Records of the output so far and of each part, with the files to take of each, none twice."""
        stores = [(self._format, self._out)] if self._out.exists() else []
        stores += [(self._part_format, part) for part in self._part_files()]
        seen: set[str] = set()
        chosen = []
        for layout, path in stores:
            kept = {file: None for file in layout.contents(path).files if file not in seen}
            seen.update(kept)
            chosen.append((layout.records(path), kept))
        return chosen


class FolderOutput:
    """A folder of ``.npy`` files; ``index.csv`` says which belongs to which audio file."""

    def __init__(self, out: Path, settings: dict[str, Any], sources: Iterable[Source]):
        if out.exists() and not out.is_dir():
            raise ConfigError(
                f"--out {out} is a file; a folder of .npy files is written where --out has no suffix."
            )
        self._out, self._settings = out, settings
        self._index = out / "index.csv"
        job = out / "settings.json"
        if self._index.exists() and not job.exists():
            raise foreign_file(self._index)
        with lock_kept(out, out) as self._lock:
            taken = self._read_index()
            self.done = set(taken)
            if taken:
                check_settings(out, json.loads(job.read_text()), settings)
            else:
                write_settings(job, settings)
            self._names = output_names(sources, taken)

    def add(self, records: list[Record]) -> None:
        """Writes each record's arrays, then their lines of the index."""
        for record in records:
            path = self._out / self._names[record.file]
            path.parent.mkdir(parents=True, exist_ok=True)
            if record.timestamps_s is not None:
                _save_array(path.with_name(path.name + ".timestamps_s.npy"), record.timestamps_s)
            _save_array(path.with_name(path.name + ".npy"), record.embedding)
        with open(self._index, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([record.file, self._names[record.file] + ".npy"] for record in records)
            file.flush()
            os.fsync(file.fileno())
        self.done.update(record.file for record in records)

    def finish(self) -> None:
        """Lets the folder go; it has its final form at any time."""
        self.release()

    def release(self) -> None:
        """Lets the folder go, and removes what only names a job that has not begun."""
        self._lock.release()
        (self._out / ".lock").unlink(missing_ok=True)
        if not self.done:
            for path in (self._index, self._out / "settings.json"):
                path.unlink(missing_ok=True)
            if not any(self._out.iterdir()):
                self._out.rmdir()

    def _read_index(self) -> dict[str, str]:
        """Output names by file; a last line that a kill cut short is dropped."""
        if not self._index.exists():
            self._index.write_text("file,array\n", encoding="utf-8")
            return {}
        text = self._index.read_bytes().decode("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with replacing(self._index) as partial:
                partial.write_bytes(whole.encode("utf-8"))
        rows = csv.DictReader(whole.splitlines(keepends=True))
        return {row["file"]: row["array"].removesuffix(".npy") for row in rows}


def _records(chosen: Iterable[tuple[Iterator[Record], dict[str, None]]]) -> Iterator[Record]:
    return itertools.chain.from_iterable(
        (record for record in records if record.file in kept) for records, kept in chosen
    )


def _save_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array)
