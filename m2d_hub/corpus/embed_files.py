"""The job of embedding many audio files: batches through the model, what fails set aside, going on."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2d_hub.audio.ahead import ReadAhead
from m2d_hub.audio.stored import StoredFile
from m2d_hub.corpus.embed_batch import EmbeddedBatch, Job, Kind, embed_opened
from m2d_hub.corpus.errors_file import ErrorsFile
from m2d_hub.corpus.outputs import Output, check_suffix, open_output
from m2d_hub.corpus.reading import opened_ahead
from m2d_hub.corpus.sources import PathOrPaths, Source, find_sources
from m2d_hub.corpus.stores import place_of
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.registry import DEFAULT_MODEL
from m2d_hub.pretrained.source import canonical_name, resolve

BATCH_BYTES = 32 << 20  # of audio files; longer recordings make smaller batches, so that memory stays bounded


# Batches, in order, to their results; closed where the job ends early.
Engine = Callable[[Iterator[list[Source]], Job], Generator[EmbeddedBatch, None, None]]


@dataclass(frozen=True)
class Summary:
    """Result of one call of :func:`embed_files`."""

    out: str
    embedded: int  # files embedded in this run
    already_there: int  # files that an earlier run had embedded
    failed: int  # files that could not be read
    errors_file: str | None  # CSV of these, with the reason of each; None: there are none


def embed_files(
    paths: PathOrPaths | Sequence[Source],
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    kind: Kind = "clip",
    batch_size: int = 16,
    num_workers: int | None = None,
    device: str | None = None,
    window_s: float | None = None,
    progress: bool = False,
    engine: Engine | None = None,
) -> Summary:
    """Embeds files into ``out``, or goes on with it; those that cannot be read go to ``OUT.errors.csv``.

    Args:
        paths: Files, folders, shell-style patterns or CSVs, one or several, as for
            :func:`m2d_hub.find_sources`, or what it answered. Files that ``out`` already has are not done
            again, those that failed earlier are.
        out: ``.parquet``, ``.npz``, ``.safetensors``, a folder of ``.npy`` files, or ``.dataset``: a folder
            of Parquet files, which workers of a cluster write themselves. A URL (``s3://bucket/name``) is
            ``.parquet`` or ``.dataset``; there is no lock in a store: let one job at a time write there.
        model: What :func:`m2d_hub.load_model` takes.
        kind: ``clip`` (D,), ``frames`` (T, D) or ``layers`` (L, T, D) for each file.
        batch_size: Files, and windows of them, that go through the model at once.
        num_workers: Threads that read files while the model works on those before; None: one a core,
            less one that encodes.
        device: As for :func:`m2d_hub.load_model`.
        window_s: As for :func:`m2d_hub.load_model`.
        progress: Shows a bar on the standard error stream.
        engine: What runs batches through the model; None: this process.

    Raises:
        ConfigError: ``out`` cannot be used, was begun with other weights, another kind or window, or holds
            embeddings of files that have changed since.
        M2DError: The model cannot be loaded, or the device's memory does not suffice.
    """
    place = place_of(out)
    sources = _as_sources(paths)
    check_suffix(place)
    errors = ErrorsFile(place)
    output = open_output(place, _settings(model, kind, window_s), sources)
    left = output.left
    failed = 0
    try:
        errors.begin()
        if left:
            job = Job(model, kind, batch_size, device, window_s, num_workers, output.parts)
            with contextlib.closing((engine or _run_here)(_batches(left, batch_size), job)) as results:
                failed = _keep(results, left, output, errors, len(sources), progress)
        errors.finish()
        output.finish()
    except torch.OutOfMemoryError as error:
        output.release()
        raise ConfigError(
            f"the device ran out of memory at batch_size {batch_size}; run again with a smaller one: "
            "what is done is kept."
        ) from error
    except BaseException:
        output.release()
        raise
    errors_file = str(errors) if failed else None
    return Summary(str(place), len(left) - failed, len(sources) - len(left), failed, errors_file)


def _as_sources(paths: PathOrPaths | Sequence[Source]) -> list[Source]:
    if not isinstance(paths, (str, os.PathLike)):
        given: list[Any] = list(paths)
        if given and all(isinstance(path, Source) for path in given):
            return given
        paths = given
    return find_sources(paths)


def _settings(model: str | os.PathLike[str], kind: str, window_s: float | None) -> dict[str, Any]:
    """Settings that must be the same for embeddings to go into one output; JSON knows no infinity."""
    window = "inf" if window_s == math.inf else window_s
    return {
        "model": canonical_name(model),
        "weights": sha256_of_model(resolve(model)),
        "kind": kind,
        "window_s": window,
    }


def _run_here(batches: Iterator[list[Source]], job: Job) -> Generator[EmbeddedBatch, None, None]:
    model = job.load_model()
    with ReadAhead(job.num_workers, model.device) as reader:
        for opened in opened_ahead(batches, model.sample_rate, reader):
            yield embed_opened(model, opened, job.kind, job.batch_size)


def _keep(
    results: Iterable[EmbeddedBatch],
    sources: list[Source],
    output: Output,
    errors: ErrorsFile,
    total: int,
    progress: bool,
) -> int:
    """Puts results into ``output`` as they come; returns how many files could not be read."""
    from tqdm import tqdm

    failures = 0
    is_watched = sys.stderr is not None and sys.stderr.isatty()  # it is None in programs without a console
    bar = tqdm(
        total=total,
        initial=total - len(sources),
        unit="file",
        disable=not progress or sys.stderr is None,
        mininterval=0.1 if is_watched else 30.0,
    )
    with bar:
        for result in results:
            if result.records:
                output.add(result.records)
            if result.failed:
                errors.add(result.failed)
            failures += len(result.failed)
            bar.update(len(result.records) + result.num_written + len(result.failed))
    return failures


def _batches(sources: Iterable[Source], batch_size: int) -> Iterator[list[Source]]:
    batch: list[Source] = []
    size = 0
    for source in sources:
        num_bytes = _size_of(source.path)
        if batch and (len(batch) == batch_size or size + num_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(source)
        size += num_bytes
    if batch:
        yield batch


def _size_of(path: Path | StoredFile) -> int:
    if isinstance(path, StoredFile):
        return path.size
    return os.path.getsize(path) if os.path.isfile(path) else 0
