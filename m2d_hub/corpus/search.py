"""Search by example: which embeddings of an output are nearest to a sound, exactly, on one machine."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.records import Origin, Record
from m2d_hub.corpus.stored import Stored, frames_of, load_model_of, read_stored
from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D
from m2d_hub.results import require_top_k


@dataclass(frozen=True)
class Match:
    """A sound that a search found."""

    file: str  # as it is named in the output
    score: float  # cosine similarity, -1 to 1
    start_s: float | None = None  # of the part that matches best, where the output holds frames
    end_s: float | None = None


def search(
    query: Any,
    embeddings: str | os.PathLike[str],
    *,
    top_k: int = 5,
    model: str | os.PathLike[str] | M2D | None = None,
    device: str | None = None,
    sample_rate: int | None = None,
    batch_size: int = 16,
) -> list[Match]:
    """Finds the sounds most similar to a query, by the cosine of their embeddings with its own.

    Embeddings of clips are compared as they are. Of frames, and the last of layers, each recording's part of
    the query's length that is most similar to it is found, and told by its times.

    Args:
        query: One clip, as for :meth:`m2d_hub.M2D.encode_clip`. A file that ``embeddings`` hold needs no
            model, and is not among its own matches; where it is gone, its name in them will do.
        embeddings: What :func:`m2d_hub.embed_files` wrote: a ``.parquet``, ``.npz`` or ``.safetensors`` file,
            or a folder.
        top_k: Most matches.
        model: What the query is embedded with: None, the model that the output names; a name or path, whose
            weights must be those of the output; or a loaded model, which is taken as it is.
        device: As for :func:`m2d_hub.load_model`.
        sample_rate: Hz of an array; None means the model's own.
        batch_size: Most windows encoded at once.

    Returns:
        The matches, the best first; fewer than ``top_k`` where there are no more.

    Raises:
        ConfigError: ``embeddings`` cannot be used, were made with other weights, or differ in size from the
            query's.
        AudioError: The query cannot be read, or is more than one clip.
    """
    require_top_k(top_k)
    stored = read_stored(embeddings)
    own = _own_record(query, stored)
    if own is not None and not _has_changed(query, stored.origins[own]):
        wanted = frames_of(next(record for record in stored.records() if record.file == own))
    else:
        loaded = model if isinstance(model, M2D) else load_model_of(stored, model, device)
        wanted = _encode(loaded, query, stored.settings["kind"], sample_rate, batch_size)
    matches = _matches(wanted, own, stored)
    return heapq.nlargest(top_k, matches, key=lambda match: match.score)


def _own_record(query: Any, stored: Stored) -> str | None:
    """The name under which the output holds the query itself, or None."""
    if not isinstance(query, (str, os.PathLike)):
        return None
    origin = Origin.of(Path(query))
    for file, kept in stored.origins.items():
        if kept.place == origin.place:
            return file
    named = os.fspath(query)
    return named if origin.is_missing and named in stored.origins else None


def _has_changed(query: str | os.PathLike[str], kept: Origin) -> bool:
    origin = Origin.of(Path(query))
    return not origin.is_missing and origin != kept


def _encode(model: M2D, query: Any, kind: str, sample_rate: int | None, batch_size: int) -> np.ndarray:
    """Embeddings (T, D) of the query's frames, or of the clip (1, D)."""
    if kind == "clip":
        clips = model.encode_clip(query, sample_rate=sample_rate, batch_size=batch_size)
    else:
        clips = model.encode_frames(query, sample_rate=sample_rate, batch_size=batch_size).features
    if len(clips) != 1:
        raise ConfigError(f"a query is one clip, got {len(clips)}; search for them one by one.")
    return clips[0].reshape(-1, clips.shape[-1]).float().cpu().numpy()


def _matches(wanted: np.ndarray, own: str | None, stored: Stored) -> Iterator[Match]:
    mean = wanted.mean(axis=0, dtype=np.float64)
    for record in stored.records():
        if record.file == own:
            continue
        frames = frames_of(record)
        if frames.shape[1] != mean.shape[0]:
            raise ConfigError(
                f"{stored.path} holds embeddings of {frames.shape[1]} values, but the query's has "
                f"{mean.shape[0]}: embed both with the same model."
            )
        yield _best_part(record, frames, mean, len(wanted))


def _best_part(record: Record, frames: np.ndarray, wanted: np.ndarray, length: int) -> Match:
    """The part of ``length`` frames whose mean is most similar; the whole, where that is shorter."""
    length = min(length, len(frames))
    sums = np.concatenate([np.zeros((1, frames.shape[1])), frames.cumsum(axis=0, dtype=np.float64)])
    parts = sums[length:] - sums[:-length]  # (T - length + 1, D)
    sizes = np.linalg.norm(parts, axis=1) * np.linalg.norm(wanted)
    scores = parts @ wanted / np.maximum(sizes, np.finfo(np.float64).tiny)
    first = int(scores.argmax())
    score = float(scores[first])
    times = record.timestamps_s
    if times is None:
        return Match(record.file, score)
    half_s = (times[1] - times[0]) / 2 if len(times) > 1 else times[0]
    start_s, end_s = times[first] - half_s, times[first + length - 1] + half_s
    return Match(record.file, score, max(0.0, float(start_s)), float(end_s))
