"""Hugging Face datasets: embeddings for ``Dataset.map``, batch by batch.

>>> from m2d_hub.clients.datasets import embed
>>> dataset.map(lambda rows: {"embedding": embed(rows["audio"])}, batched=True)

With ``num_proc``, start processes by spawn (``multiprocess.set_start_method("spawn")``), as torch
has threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2d_hub.hub import load_model
from m2d_hub.model import M2D
from m2d_hub.pretrained.registry import DEFAULT_MODEL


def embed(
    waves: Sequence[Any],
    sampling_rate: int | None = None,
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    batch_size: int = 16,
    device: str | None = None,
) -> np.ndarray:
    """Embed clips; the model is loaded once per process.

    Args:
        waves: A column of audio, or clips (S,) of different lengths; ``(channels, S)`` are averaged.
        sampling_rate: Hz of arrays that carry no rate; None means the model's own.
        name: What :func:`m2d_hub.load_model` takes.
        batch_size: Maximum number of windows encoded at once.
        device: As for :func:`m2d_hub.load_model`.

    Returns:
        (B, N_F·D) float32.
    """
    model = _model(name, device)  # type: ignore[arg-type]  # paths can be hashed
    clips = model.encode_clip(waves, sample_rate=sampling_rate, channels="mix", batch_size=batch_size)
    return clips.numpy()


@functools.lru_cache(maxsize=2)
def _model(name: str | os.PathLike[str], device: str | None) -> M2D:
    return load_model(name, device=device)
