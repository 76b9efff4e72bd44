"""Detect events in many audio files; the job can be interrupted and resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from m2d_hub.audio.prefetch import Prefetcher
from m2d_hub.corpus.embed_files import opened_ahead
from m2d_hub.corpus.event_tables import EventRow, FileEvents, check_table, write_table
from m2d_hub.corpus.sources import PathOrPaths, Source, find_sources
from m2d_hub.detect import Detection
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import reading_file, replacing
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.registry import DEFAULT_TAGGER
from m2d_hub.pretrained.source import canonical_name, resolve


@dataclass(frozen=True)
class DetectionSummary:
    """Result of :func:`detect_files`."""

    out: str
    num_events: int
    num_files: int  # read now or by an earlier, interrupted run
    failed: dict[str, str]  # reasons why files cannot be read, by name


def detect_files(
    paths: PathOrPaths,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_TAGGER,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = False,
    **settings: Any,
) -> DetectionSummary:
    """Detect events in files and write them as one table.

    An interrupted job resumes when it is started again: finished files are in ``OUT.partial.jsonl`` until the
    table is written. An existing table is then replaced.

    Args:
        paths: Files, folders, patterns or CSVs, as for :func:`m2d_hub.find_sources`, or its result.
        out: ``.csv``, ``.jsonl``, ``.parquet``, ``.selections.txt`` (Raven selection table) or ``.txt``
            (Audacity labels, for one file).
        model: Model with a head, as for :func:`m2d_hub.load_model`.
        batch_size: Maximum number of windows encoded at once.
        device: Device, as for :func:`m2d_hub.load_model`.
        progress: Show a progress bar on standard error.
        **settings: Thresholds and others, as for :meth:`m2d_hub.M2D.detect`.

    Raises:
        ConfigError: The model has no head, ``out`` has an unknown suffix, a setting is out of range, or an
            unfinished job with other settings exists.
        M2DError: The model cannot be loaded.
    """
    out, sources = Path(out), find_sources(paths)
    check_table(out, len(sources))
    loaded = load_model(model, device=device)
    Detection(**settings).thresholds(loaded.required_labels())  # raise before any work is done
    job = {"model": canonical_name(model), "weights": sha256_of_model(resolve(model)), **settings}
    journal = Journal(out.with_name(f"{out.name}.partial.jsonl"), job)
    left = [source for source in sources if source.file not in journal.files]
    failed: dict[str, str] = {}
    with journal, tqdm(total=len(left), unit="file", disable=not progress) as bar:
        for source, result in _detect_each(loaded, left, batch_size, settings):
            if isinstance(result, FileEvents):
                journal.add(result)
            else:
                failed[source.file] = result
            bar.update()
    found = [journal.files[source.file] for source in sources if source.file in journal.files]
    write_table(out, found, loaded.sample_rate / 2)
    journal.path.unlink()
    return DetectionSummary(str(out), sum(len(file.rows) for file in found), len(found), failed)


def _detect_each(
    model: M2D, sources: list[Source], batch_size: int, settings: dict[str, Any]
) -> Iterator[tuple[Source, FileEvents | str]]:
    """Yield the events of each file, or why it cannot be read, while the next ones are read."""
    with Prefetcher() as reader:
        opened = opened_ahead(([source] for source in sources), model.sample_rate, reader)
        for source, file in zip(sources, opened, strict=True):
            try:
                if file.failed:
                    raise AudioError(file.failed[0][1])
                [events] = model.detect(file.clips, batch_size=batch_size, **settings)
            except AudioError as error:
                yield source, str(error)
                continue
            rows = [EventRow(source.file, **asdict(event)) for event in events]
            yield source, FileEvents(source.file, file.clips[0].expected_samples / model.sample_rate, rows)


class Journal:
    """Finished files of a job, one JSON line each, after a line with the job's settings."""

    def __init__(self, path: Path, job: dict[str, Any]):
        """Read the journal of an interrupted job.

        Raises:
            ConfigError: It cannot be read, or belongs to a job with other settings.
        """
        self.path, self.files = path, dict[str, FileEvents]()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(job)]
        if path.exists():
            hint = "Remove it to start over."
            with reading_file(path, "the journal of m2d-hub detect", hint, ConfigError):
                lines = (
                    path.read_text(encoding="utf-8").split("\n")[:-1] or lines
                )  # without an unfinished line
                for line in lines[1:]:
                    values = json.loads(line)
                    rows = [EventRow(**row) for row in values.pop("rows")]
                    self.files[values["file"]] = FileEvents(**values, rows=rows)
            if json.loads(lines[0]) != json.loads(json.dumps(job)):
                raise ConfigError(
                    f"{path} belongs to an unfinished job with other settings ({lines[0]}); finish that job, "
                    "or remove the file to start over."
                )
        with replacing(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, file: FileEvents) -> None:
        """Add a file that is finished."""
        self.files[file.file] = file
        self._opened.write(json.dumps(asdict(file)) + "\n")
        self._opened.flush()

    def __enter__(self) -> Journal:
        self._opened = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
