"""Embed many audio files into an output, in batches; the job can be interrupted and resumed."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from m2d_hub.audio.clips import AudioClip, open_audio
from m2d_hub.audio.prefetch import CLIPS_AHEAD, Prefetcher
from m2d_hub.audio.stored import StoredFile
from m2d_hub.corpus.outputs import Output
from m2d_hub.corpus.records import Row, batched
from m2d_hub.corpus.sources import PathOrPaths, Source, find_sources
from m2d_hub.corpus.stored import check_suffix
from m2d_hub.corpus.stores import Location, open_location, to_location, written
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import as_cell, as_text
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.registry import DEFAULT_MODEL
from m2d_hub.pretrained.source import canonical_name, resolve

Kind = Literal["clip", "frames", "layers"]
Failures = list[tuple[Source, str]]  # files that cannot be read, with reasons
BATCH_BYTES = 32 << 20  # of audio files; longer recordings make smaller batches, so that memory stays bounded
_HEADER = b"file,error\r\n"


@dataclass(frozen=True)
class OpenedBatch:
    """Files of a batch."""

    sources: list[Source]  # that could be opened,
    clips: list[AudioClip]  # with the clip of each
    failed: Failures  # the others, with reasons


@dataclass(frozen=True)
class Summary:
    """Result of :func:`embed_files`."""

    out: str
    embedded: int  # files embedded in this run
    already_there: int  # files that an earlier run embedded
    failed: int  # files that could not be read
    errors_file: str | None  # CSV of these files, with reasons; None if there are none


def embed_files(
    paths: PathOrPaths,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    kind: Kind = "clip",
    batch_size: int = 16,
    num_workers: int | None = None,
    device: str | None = None,
    window_s: float | None = None,
    segment_s: float | None = None,
    hop_s: float | None = None,
    text_space: bool = False,
    progress: bool = False,
) -> Summary:
    """Embed files into ``out``; files that cannot be read are listed in ``OUT.errors.csv``.

    Run again, an interrupted job resumes: files that ``out`` has are skipped, and those that failed, or have
    changed since, are embedded.

    Args:
        paths: Files, folders, shell-style patterns or CSVs, one or several, as for
            :func:`m2d_hub.find_sources`, or its result.
        out: ``.parquet``, ``.npz``, ``.safetensors``, ``.dataset`` (a folder of Parquet files), or a folder
            of ``.npy`` files. A URL (``s3://bucket/name``) must end in ``.parquet`` or ``.dataset``; stores
            have no locks, so let only one job write there.
        model: What :func:`m2d_hub.load_model` takes.
        kind: ``clip`` (D,), ``frames`` (T, D) or ``layers`` (L, T, D) for each file.
        batch_size: Files, and windows of them, encoded at once.
        num_workers: Threads that read files ahead of the encoder; None: CPU cores - 1.
        device: As for :func:`m2d_hub.load_model`.
        window_s: As for :func:`m2d_hub.load_model`.
        segment_s: Write one embedding per segment of this length, with its start and end, as
            :meth:`m2d_hub.M2D.encode_segments`; None for one per file. Only for kind ``clip``.
        hop_s: Seconds from the start of a segment to that of the next; None for ``segment_s``.
        text_space: Embed clips or segments in the space shared with text.
        progress: Show a progress bar on the standard error stream.

    Raises:
        ConfigError: ``out`` cannot be used, was started with other settings, or is incomplete at the end.
        M2DError: The model cannot be loaded, or the device's memory is too small.
    """
    location = to_location(out)
    if isinstance(location, Path) and (not location.name or location.name == ".."):
        location = Path(os.path.abspath(location))  # "." is called as the folder that it stands for
        if not location.name:
            raise ConfigError(f"{location} cannot be an output; give a file or folder in it.")
    check_suffix(location)
    sources = find_sources(paths)
    errors_file = _errors_file(location)
    failures: Failures = []
    job = Job(kind, batch_size, segment_s, hop_s, text_space)
    output = Output(location, _settings(model, window_s, job), sources)
    try:
        if output.left:
            loaded = load_model(model, device=device, window_s=window_s)
            with Prefetcher(num_workers) as reader, _progress_bar(output, len(sources), progress) as bar:
                batches = batched(output.left, _size_of, BATCH_BYTES, batch_size)
                for batch in opened_ahead(batches, loaded.sample_rate, reader):
                    rows, failed = _embed_batch(loaded, batch, job)
                    output.add(rows)
                    failures += failed
                    bar.update(len(rows) + len(failed))
        output.finish(source.file for source, _ in failures)
    except torch.OutOfMemoryError as error:
        output.release()
        raise ConfigError(
            f"the device ran out of memory at batch_size {batch_size}; run again with a smaller one: "
            "finished files are kept."
        ) from error
    except BaseException:
        output.release()
        raise
    finally:
        _write_errors(errors_file, failures)
    left, num_failed = len(output.left), len(failures)
    listed = str(errors_file) if failures else None
    return Summary(os.fspath(out), left - num_failed, len(sources) - left, num_failed, listed)


@dataclass(frozen=True)
class Job:
    """What is computed for each file; see :func:`embed_files`.

    Raises:
        ConfigError: Segments or the space shared with text were asked for with frames or layers, or a hop
            without segments.
    """

    kind: Kind
    batch_size: int
    segment_s: float | None = None
    hop_s: float | None = None
    text_space: bool = False

    def __post_init__(self) -> None:
        if self.kind != "clip" and (self.segment_s is not None or self.text_space):
            raise ConfigError(
                f"segment_s and text_space need kind 'clip', got {self.kind!r}; leave them unset for frames "
                "and layers."
            )
        if self.segment_s is None and self.hop_s is not None:
            raise ConfigError("hop_s needs segment_s; give the length of a segment too.")


def _settings(model: str | os.PathLike[str], window_s: float | None, job: Job) -> dict[str, Any]:
    """Return the settings that all rows of an output share; JSON has no infinity."""
    settings = {
        "model": canonical_name(model),
        "weights": sha256_of_model(resolve(model)),
        "kind": job.kind,
        "window_s": "inf" if window_s == math.inf else window_s,
    }
    if job.segment_s is not None:
        settings |= {"segment_s": job.segment_s, "hop_s": job.hop_s}
    return settings | ({"text_space": True} if job.text_space else {})


def opened_ahead(
    batches: Iterable[list[Source]], sample_rate: int, reader: Prefetcher
) -> Iterator[OpenedBatch]:
    """Open batches in order, while ``reader`` reads the next ones; each clip must be read or closed."""
    ahead: deque[OpenedBatch] = deque()
    num_clips = 0
    for batch in batches:
        opened_batch = _open_batch(batch, sample_rate)
        opened_batch.clips[:] = [reader.add(clip) for clip in opened_batch.clips]
        ahead.append(opened_batch)
        num_clips += len(opened_batch.clips)
        while num_clips - len(ahead[0].clips) >= CLIPS_AHEAD:
            num_clips -= len(ahead[0].clips)
            yield ahead.popleft()
    yield from ahead


def _open_batch(batch: Iterable[Source], sample_rate: int) -> OpenedBatch:
    opened_batch = OpenedBatch([], [], [])
    for source in batch:
        try:
            opened_batch.clips.extend(open_audio(source.path, sample_rate))
            opened_batch.sources.append(source)
        except AudioError as error:
            opened_batch.failed.append((source, str(error)))
    return opened_batch


def _embed_batch(model: M2D, batch: OpenedBatch, job: Job) -> tuple[list[Row], Failures]:
    """Embed a batch; if a file of it cannot be read to its end, each file is embedded alone."""
    sources, failed = batch.sources, list(batch.failed)
    if not sources:
        return [], failed
    try:
        return _encode(model, sources, batch.clips, job), failed
    except AudioError as error:
        reason = str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not _is_out_of_memory(error):
            raise
        reason = f"{sources[0].path} is too long for this machine's memory, as kind={job.kind!r}"
    if len(sources) == 1:
        return [], [*failed, (sources[0], reason)]
    for clip in batch.clips:
        clip.close()
    rows: list[Row] = []
    for source in sources:
        alone = _embed_batch(model, _open_batch([source], model.sample_rate), job)
        rows += alone[0]
        failed += alone[1]
    return rows, failed


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means too little CPU memory, which torch says only in its text."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _encode(model: M2D, sources: list[Source], clips: list[AudioClip], job: Job) -> list[Row]:
    if job.segment_s is not None:
        return _encode_segments(model, sources, clips, job, job.segment_s)
    if job.kind == "clip":
        encode_clip = model.encode_audio_text_space if job.text_space else model.encode_clip
        means = encode_clip(clips, batch_size=job.batch_size).float().cpu().numpy()
        return [Row(source.file, mean) for source, mean in zip(sources, means, strict=True)]
    encode = model.encode_frames if job.kind == "frames" else model.encode_layers
    frames = encode(clips, batch_size=job.batch_size)
    features = frames.features.float().cpu().numpy()  # (B, T, D) or (L, B, T, D)
    lengths = frames.mask.sum(dim=1).tolist()
    times = frames.timestamps_s.double().cpu().numpy()
    return [
        Row(source.file, features[..., index, :length, :], times[:length])
        for index, (source, length) in enumerate(zip(sources, lengths, strict=True))
    ]


def _encode_segments(
    model: M2D, sources: list[Source], clips: list[AudioClip], job: Job, segment_s: float
) -> list[Row]:
    segments = model.encode_segments(
        clips,
        segment_s=segment_s,
        hop_s=job.hop_s,
        text_space=job.text_space,
        batch_size=job.batch_size,
    )
    times = torch.stack([segments.start_s, segments.end_s], dim=1).numpy()
    features, index = segments.features.float().cpu().numpy(), segments.clip.numpy()
    return [Row(source.file, features[index == i], times[index == i]) for i, source in enumerate(sources)]


def _size_of(source: Source) -> int:
    if isinstance(source.path, StoredFile):
        return source.path.size
    return os.path.getsize(source.path) if os.path.isfile(source.path) else 0


def _progress_bar(output: Output, total: int, is_shown: bool) -> Any:
    from tqdm import tqdm

    is_disabled = None if is_shown and sys.stderr else True  # None: unless standard error is a terminal
    return tqdm(total=total, initial=total - len(output.left), unit="file", disable=is_disabled)


def _errors_file(out: Location) -> Location:
    """Return the list of files that cannot be read, ``OUT.errors.csv``, which must not be something else."""
    location = out.with_name(f"{out.name}.errors.csv")
    if location.exists():
        with open_location(location, "a CSV") as file:
            is_own = file.read(len(_HEADER)) == _HEADER
        if not is_own:
            raise ConfigError(
                f"{location}, the list of files that cannot be read, was not written by m2d-hub embed; "
                "move it elsewhere, or give another output."
            )
    return location


def _write_errors(location: Location, failures: Failures) -> None:
    """Write the list, or remove that of an earlier run."""
    if not failures:
        location.unlink(missing_ok=True)
        return
    table = io.StringIO(newline="")
    rows = [(as_cell(source.file), as_cell(as_text(reason))) for source, reason in failures]
    csv.writer(table).writerows([("file", "error"), *rows])
    with written(location) as partial:
        partial.write_bytes(table.getvalue().encode("utf-8", "backslashreplace"))
