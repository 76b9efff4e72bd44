"""The job of embedding files on the workers of a Ray cluster, with the same output and going on as without.

Batches leave from, and all results come back to, the process that was started, which writes one output on its
own disk: right for long recordings and slow models. For a corpus that outgrows a machine let the workers read
and write themselves: ``map_batches(EmbedAudio).write_parquet(…)`` with
:class:`m2d_hub.clients.ray.EmbedAudio`.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Generator, Iterator

import numpy as np

from m2d_hub.corpus.embed_batch import EmbeddedBatch, Job, embed_batch
from m2d_hub.corpus.sources import Source
from m2d_hub.errors import ConfigError


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
            raise ConfigError("the engine ray needs Ray Data: pip install 'm2d-hub[ray]'.") from error
        self._ray, self._num_workers = ray, num_workers

    def __call__(self, batches: Iterator[list[Source]], job: Job) -> Generator[EmbeddedBatch, None, None]:
        """Embeds batches; starts a cluster on this machine unless one is connected."""
        # Here first: what is wrong with a model is told at once, and workers find its weights downloaded.
        dataclasses.replace(job, device="cpu").load_model()
        return self._run(list(batches), job)

    def _run(self, batches: list[list[Source]], job: Job) -> Generator[EmbeddedBatch, None, None]:
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
            yield pickle.loads(row["result"])  # noqa: S301  # of our own workers


class _Worker:
    """One process with its own model."""

    def __init__(self, job: Job):
        self._job, self._model = job, job.load_model()

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        batches = [pickle.loads(batch) for batch in rows["batch"]]  # noqa: S301  # of our own driver
        job = self._job
        results = [embed_batch(self._model, batch, job.kind, job.batch_size) for batch in batches]
        return {"result": [pickle.dumps(result) for result in results]}
