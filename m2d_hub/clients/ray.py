"""Ray Data: embeddings of corpora that outgrow a machine.

>>> from m2d_hub.clients.ray import EmbedAudio
>>> dataset = ray.data.from_items([{"path": path} for path in paths])
>>> dataset.map_batches(EmbedAudio, batch_size=16, concurrency=2).write_parquet("embeddings")

The guide to large corpora shows how to resume such a job.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.hub import load_model
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
