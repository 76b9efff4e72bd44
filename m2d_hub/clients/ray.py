"""Ray Data: embeddings of corpora that outgrow a machine.

>>> from m2d_hub.clients.ray import EmbedAudio
>>> dataset = ray.data.from_items([{"path": path} for path in paths])
>>> dataset.map_batches(EmbedAudio, batch_size=16, concurrency=2).write_parquet("embeddings")

``m2d-hub embed --engine ray`` does the same for a ``.dataset``, and resumes.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from m2d_hub.corpus.embed_files import EmbeddedBatch, Job
from m2d_hub.corpus.outputs import PART_ROWS, Output
from m2d_hub.corpus.parquet import table_of
from m2d_hub.corpus.records import Entries
from m2d_hub.corpus.sources import Source
from m2d_hub.corpus.stores import StoreUrl
from m2d_hub.errors import AudioError, ConfigError, M2DError, reason_of
from m2d_hub.hub import load_model
from m2d_hub.io import importing
from m2d_hub.pretrained.registry import DEFAULT_MODEL

COLUMNS = ("path", "file", "audio", "array", "waveform", "bytes", "item", "data")


class EmbedAudio:
    """An actor for ``map_batches`` that adds ``embedding`` (D,) to each row.

    Audio that cannot be read does not stop the rest: its embedding is NaN, and ``error`` says why.
    """

    def __init__(
        self,
        name: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        column: str | None = None,
        sample_rate: int | None = None,
        batch_size: int = 16,
        device: str | None = None,
    ):
        """Load the model.

        Args:
            name: What :func:`m2d_hub.load_model` takes.
            column: Column of paths, bytes of files, or waveforms; None: the first of those in ``COLUMNS``.
            sample_rate: Hz of waveforms; None means the model's own.
            batch_size: Maximum number of windows encoded at once.
            device: As for :func:`m2d_hub.load_model`.
        """
        self.model = load_model(name, device=device)
        self.column, self.sample_rate, self.batch_size = column, sample_rate, batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed the rows of a batch.

        Raises:
            ConfigError: The batch has no column of audio.
        """
        column = self.column or next((name for name in COLUMNS if name in batch), None)
        if column not in batch:
            raise ConfigError(
                f"rows have no column {column or ' or '.join(COLUMNS)}, but {', '.join(batch)}; give "
                "EmbedAudio(column=...)."
            )
        clips = [io.BytesIO(value) if isinstance(value, bytes) else value for value in batch[column]]
        embeddings, errors = self._embed(clips)
        return {**batch, "embedding": embeddings, "error": np.array(errors, dtype=object)}

    def _embed(self, clips: list[Any]) -> tuple[np.ndarray, list[str]]:
        try:
            embeddings = self.model.encode_clip(
                clips, sample_rate=self.sample_rate, channels="mix", batch_size=self.batch_size
            )
            return embeddings.numpy(), [""] * len(clips)
        except AudioError as error:
            if len(clips) == 1:
                return np.full((1, self.model.frame_dim), np.nan, dtype=np.float32), [str(error)]
        for clip in clips:
            if isinstance(clip, io.BytesIO):
                clip.seek(0)
        alone = [self._embed([clip]) for clip in clips]
        return np.concatenate([rows for rows, _ in alone]), [errors[0] for _, errors in alone]


class RayEngine:
    """An engine of :func:`m2d_hub.embed_files` for a ``.dataset``, whose parts are written by Ray workers.

    The files and the output must have the same paths on all machines.
    """

    def __init__(self, num_workers: int = 2):
        """Set the number of workers.

        Raises:
            ConfigError: Ray is not installed.
        """
        with importing("Ray Data", "the engine ray", "ray"):
            import ray.data
        self._ray, self._num_workers = ray, num_workers

    def __call__(self, output: Output, job: Job) -> Iterator[EmbeddedBatch]:
        """Embed the files that are left, on a local cluster unless one is connected.

        Raises:
            ConfigError: The output is not a ``.dataset``, or a worker failed.
        """
        if not output.is_dataset:
            raise ConfigError(f"{output.location}: the engine ray writes a .dataset only; give such a name.")
        job = dataclasses.replace(job, model=output.settings["model"])  # workers have another current folder
        dataclasses.replace(job, device="cpu").load_model()  # so that an unusable model fails here
        if not self._ray.is_initialized():
            cores = None if "RAY_ADDRESS" in os.environ else max(self._num_workers, os.cpu_count() or 1)
            self._ray.init(log_to_driver=False, num_cpus=cores)
        failures = self._ray.remote(_Failures).remote()
        try:
            self._write(output, job, failures)
            yield EmbeddedBatch([], self._ray.get(failures.all.remote()))
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, (M2DError, OSError)):
                raise cause from error
            raise ConfigError(f"a Ray worker failed ({reason_of(cause)}); run again to resume.") from error

    def _write(self, output: Output, job: Job, failures: Any) -> None:
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars, context.raise_original_map_exception = False, True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
        items = [
            {
                "source": dataclasses.replace(source, path=source.path.absolute()),
                "fingerprint": output.fingerprints[source.file],
            }
            for source in output.left
        ]
        num_blocks = min(len(items), max(4 * self._num_workers, -(-len(items) // PART_ROWS)))
        rows = data.from_items(items, override_num_blocks=num_blocks).map_batches(
            _EmbedSources,
            fn_constructor_args=(job, output.settings, failures),
            batch_size=None,
            compute=data.ActorPoolStrategy(size=min(self._num_workers, num_blocks)),
            num_gpus=1 if (job.device or "").startswith("cuda") else None,
        )
        out = output.location
        path, fs = (out.path, out.fs) if isinstance(out, StoreUrl) else (str(out.absolute()), None)
        # Workers may take all processors.
        rows.write_parquet(path, filesystem=fs, ray_remote_args={"num_cpus": 0})


class _Failures:
    """An actor that collects the files that could not be read."""

    def __init__(self) -> None:
        self._reasons: dict[str, tuple[Source, str]] = {}  # by file; a restarted worker reports some twice

    def add(self, failed: list[tuple[Source, str]]) -> None:
        self._reasons |= {source.file: (source, reason) for source, reason in failed}

    def all(self) -> list[tuple[Source, str]]:
        return list(self._reasons.values())


class _EmbedSources:
    """An actor for ``map_batches`` that turns sources into rows of an output."""

    def __init__(self, job: Job, settings: dict[str, Any], failures: Any):
        self._job, self._settings, self._failures = job, settings, failures
        self._model = job.load_model()

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Any]:
        sources: list[Source] = list(batch["source"])
        files = [source.file for source in sources]
        entries = Entries(self._settings, dict(zip(files, batch["fingerprint"], strict=True)))
        for result in self._job.embed(self._model, sources):
            if result.failed:
                self._failures.add.remote(result.failed)
            if result.rows:
                yield table_of(result.rows, entries)
