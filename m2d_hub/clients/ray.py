"""Ray Data: embeddings of corpora that outgrow a machine.

>>> from m2d_hub.clients.ray import EmbedAudio
>>> dataset = ray.data.from_items([{"path": path} for path in paths])
>>> dataset.map_batches(EmbedAudio, batch_size=16, concurrency=2).write_parquet("embeddings")

``m2d-hub embed --engine ray`` is :class:`RayEngine`: the same files, numbers and resuming as without it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from m2d_hub.corpus.embed_files import EmbeddedBatch, Job, embed_batch
from m2d_hub.corpus.sources import Source
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.hub import load_model

COLUMNS = ("path", "file", "audio", "array", "waveform", "bytes", "item", "data")


class EmbedAudio:
    """An actor for ``map_batches``: adds ``embedding`` (D,) to each row; the model is loaded once an actor.

    Audio that cannot be read does not stop the rest: its embedding is NaN, and ``error`` says why.
    """

    def __init__(
        self,
        name: str | os.PathLike[str] = "m2d-mini",
        *,
        column: str | None = None,
        sample_rate: int | None = None,
        batch_size: int = 16,
        device: str | None = None,
    ):
        """Loads the model.

        Args:
            name: What :func:`m2d_hub.load_model` takes.
            column: Of paths, bytes of files, or waveforms; None: the first of those in ``COLUMNS``.
            sample_rate: Hz of waveforms; None means the model's own.
            batch_size: Most windows encoded at once.
            device: As for :func:`m2d_hub.load_model`.
        """
        self.model = load_model(name, device=device)
        self.column, self.sample_rate, self.batch_size = column, sample_rate, batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embeds the rows of a batch.

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
        clips = [str(clip) if isinstance(clip, np.str_) else clip for clip in clips]
        embeddings, errors = self._embed(clips)
        return {**batch, "embedding": embeddings, "error": np.array(errors, dtype=object)}

    def _embed(self, clips: list[Any]) -> tuple[np.ndarray, list[str]]:
        try:
            embeddings = self.model.encode_clip(
                clips, sample_rate=self.sample_rate, batch_size=self.batch_size
            )
            return embeddings.numpy(), [""] * len(clips)
        except (AudioError, OSError) as error:
            if len(clips) == 1:
                return np.full((1, self.model.frame_dim), np.nan, dtype=np.float32), [str(error)]
        for clip in clips:
            if isinstance(clip, io.BytesIO):
                clip.seek(0)
        alone = [self._embed([clip]) for clip in clips]
        return np.concatenate([rows for rows, _ in alone]), [errors[0] for _, errors in alone]


class RayEngine:
    """Runs the batches of :func:`m2d_hub.corpus.embed_files.embed_files` on the workers of a Ray cluster.

    What a worker had begun when it died is done again by another one. The results are written here, in the
    files' order, so that a job which is stopped goes on as without Ray.
    """

    def __init__(self, num_workers: int = 2):
        """Raises ConfigError where Ray is not installed."""
        try:
            import ray.data
        except ImportError as error:
            raise ConfigError("--engine ray needs Ray Data: pip install 'm2d-hub[ray]'.") from error
        self._ray, self._num_workers = ray, num_workers

    def __call__(self, batches: Iterator[list[Source]], job: Job) -> Iterator[EmbeddedBatch]:
        """Embeds batches; starts a cluster on this machine unless one is connected."""
        # Here first: what is wrong with a model is told at once, and workers find its weights downloaded.
        dataclasses.replace(job, device="cpu").load_model()
        return self._run(list(batches), job)

    def _run(self, batches: list[list[Source]], job: Job) -> Iterator[EmbeddedBatch]:
        data = self._ray.data
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False)
        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        packed = [{"batch": pickle.dumps(batch)} for batch in batches]
        workers = min(self._num_workers, len(packed))
        dataset = data.from_items(packed, override_num_blocks=len(packed)).map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers),
            num_gpus=1 if (job.device or "").startswith("cuda") else None,
        )
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])


class _Worker:
    """One process with its own model."""

    def __init__(self, job: Job):
        self._job, self._model = job, job.load_model()

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        batches = [pickle.loads(batch) for batch in rows["batch"]]
        job = self._job
        results = [embed_batch(self._model, batch, job.kind, job.batch_size) for batch in batches]
        return {"result": [pickle.dumps(result) for result in results]}
