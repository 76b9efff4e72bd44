"""The job of embedding files on the workers of a Ray cluster, with the same output and going on as without.

Workers read the files. Into a ``.dataset`` they write as well, so that only names pass through the process
that was started; into other outputs, on its own disk, it writes what they send. What a worker had begun when
it died is done again by another one. All must see files and output under the same paths. For a pipeline of
your own there is :class:`m2d_hub.clients.ray.EmbedAudio`.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Generator, Iterator

import numpy as np

from m2d_hub.audio.ahead import ReadAhead
from m2d_hub.corpus.dataset_output import PartBuffer
from m2d_hub.corpus.embed_batch import EmbeddedBatch, Job, embed_opened
from m2d_hub.corpus.reading import opened_ahead
from m2d_hub.corpus.records import Origin
from m2d_hub.corpus.sources import Source
from m2d_hub.io import importing

_MOST_BATCHES = 64  # that a worker does at a time; done again where it dies


class RayEngine:
    """Runs the batches of :func:`m2d_hub.corpus.embed_files.embed_files` on the workers of a Ray cluster.

    What a worker had begun when it died is done again by another one. The results are written here, in the
    files' order, so that a job which is stopped goes on as without Ray.
    """

    def __init__(self, num_workers: int = 2):
        """Raises ConfigError where Ray is not installed."""
        with importing("Ray Data", "the engine ray", "ray"):
            import ray.data
        self._ray, self._num_workers = ray, num_workers

    def __call__(self, batches: Iterator[list[Source]], job: Job) -> Generator[EmbeddedBatch, None, None]:
        """Embeds batches; starts a cluster on this machine unless one is connected."""
        # Here first: what is wrong with a model is told at once, and workers find its weights downloaded.
        dataclasses.replace(job, device="cpu").load_model()
        return self._run(list(batches), job)

    def _run(self, batches: list[list[Source]], job: Job) -> Generator[EmbeddedBatch, None, None]:
        data = self._ray.data
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, num_cpus=self._cores())
        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        most = 1 if job.parts is None else _MOST_BATCHES  # results of one go through this process
        size = max(1, min(most, len(batches) // (4 * self._num_workers)))
        absolute = [[_absolute(source) for source in batch] for batch in batches]
        shards = [absolute[first : first + size] for first in range(0, len(absolute), size)]
        packed = [{"shard": pickle.dumps(shard)} for shard in shards]
        workers = min(self._num_workers, len(packed))
        dataset = data.from_items(packed, override_num_blocks=len(packed)).map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers),
            num_gpus=1 if (job.device or "").startswith("cuda") else None,
        )
        for row in dataset.iter_rows():
            yield from pickle.loads(row["results"])  # noqa: S301  # of our own workers

    def _cores(self) -> int | None:
        """Of a cluster that is started here: one a worker, at least; None: there is one to connect to."""
        return None if "RAY_ADDRESS" in os.environ else max(self._num_workers, os.cpu_count() or 1)


def _absolute(source: Source) -> Source:
    """A worker has another current folder."""
    return dataclasses.replace(source, path=source.path.absolute())


class _Worker:
    """One process with its own model."""

    def __init__(self, job: Job):
        self._job, self._model = job, job.load_model()

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        shards = [pickle.loads(shard) for shard in rows["shard"]]  # noqa: S301  # of our own driver
        return {"results": [pickle.dumps(list(self._embed(shard))) for shard in shards]}

    def _embed(self, shard: list[list[Source]]) -> Iterator[EmbeddedBatch]:
        """Results of batches; where this process writes, their records are written and left out."""
        job, model = self._job, self._model
        buffer = None if job.parts is None else PartBuffer(job.parts)
        with ReadAhead(job.num_workers, model.device) as reader:
            for opened in opened_ahead(shard, model.sample_rate, reader):
                result = embed_opened(model, opened, job.kind, job.batch_size)
                if buffer is not None:
                    origins = {source.file: Origin.of(source.path) for source in opened.sources}
                    buffer.add(result.records, origins)
                    result = EmbeddedBatch([], result.failed, len(result.records))
                yield result
        if buffer is not None:
            buffer.flush()
