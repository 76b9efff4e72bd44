"""Exact search by cosine similarity in an output of :func:`m2d_hub.embed_files`."""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.checks import require
from m2d_hub.corpus.records import Fingerprint, Row
from m2d_hub.corpus.stored import EmbeddingsFile, frames_of, load_model_of, read_embeddings
from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D
from m2d_hub.results import Frames, require_top_k

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """A sound that a search found."""

    file: str  # its name in the output
    score: float  # cosine similarity, -1 to 1
    start_s: float | None = None  # of the best matching section, if the output holds frames
    end_s: float | None = None


def search(
    query: Any = None,
    embeddings: str | os.PathLike[str] = "",
    *,
    text: str | None = None,
    top_k: int = 5,
    model: str | os.PathLike[str] | M2D | None = None,
    device: str | None = None,
    sample_rate: int | None = None,
    batch_size: int = 16,
) -> list[Match]:
    """Find the sounds most similar to a query, by the cosine similarity of their embeddings.

    If the output holds frames or layers, the section of each recording, as long as the query, that is most
    similar to the query is found; of layers, the last one is used. Each segment of an output of segments may
    be a match.

    Args:
        query: One clip, as for :meth:`m2d_hub.M2D.encode_clip`. A file of the output needs no model and is
            not among its matches; a file that was deleted since is found by its name in the output.
        embeddings: Output of :func:`m2d_hub.embed_files`: a file or a folder.
        text: A description in place of ``query``, for an output in the space shared with text
            (``embed_files(..., text_space=True)``).
        top_k: Maximum number of matches.
        model: Model to embed the query with: a name or path with the same weights as the output's, or a
            loaded model, which is not checked. None: the model named in the output.
        device: Device, as for :func:`m2d_hub.load_model`.
        sample_rate: Sample rate of an array in Hz; None means the model's.
        batch_size: Maximum number of windows encoded at once.

    Returns:
        The matches, in descending order of similarity. Embeddings that are not finite are skipped with a
        warning.

    Raises:
        ConfigError: ``embeddings`` cannot be used, was made with other weights, has another width than the
            query, or is not in the space shared with text; or not exactly one of ``query`` and ``text`` was
            given.
        AudioError: The query cannot be read, or is more than one clip.
    """
    require_top_k(top_k)
    require((query is None) != (text is None), "A search needs a query or a text, and not both.")
    stored = read_embeddings(embeddings)
    is_text_space = bool(stored.settings.get("text_space"))
    if text is not None and not is_text_space:
        raise ConfigError(
            f"{stored.path} is not in the space shared with text; embed the files again with a model such as "
            "m2d-clap-2025 and --text-space."
        )
    own, is_valid = _own_name(query, stored)
    if text is not None:
        loaded = model if isinstance(model, M2D) else load_model_of(stored, model, device)
        wanted = loaded.encode_text([text]).numpy()
    elif is_valid:
        wanted = frames_of(next(row for row in stored.rows() if row.file == own))
    else:
        loaded = model if isinstance(model, M2D) else load_model_of(stored, model, device)
        encode: Callable[..., Any] = loaded.encode_frames
        if stored.settings["kind"] == "clip":
            encode = loaded.encode_audio_text_space if is_text_space else loaded.encode_clip
        wanted = _encode(encode, query, sample_rate, batch_size)
    if not np.isfinite(wanted).all():
        raise ConfigError("The embedding of the query is not finite; embed its file again.")
    matches = _matches(wanted, own, stored)
    return heapq.nlargest(top_k, matches, key=lambda match: match.score)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (N, D) to unit length, so that their products are cosines; zero vectors stay zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))  # float32 would overflow
    return (vectors / np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]).astype(vectors.dtype)


def _own_name(query: Any, stored: EmbeddingsFile) -> tuple[str | None, bool]:
    """Return the name of the query in the output, if any, and whether its embedding there is up to date."""
    if isinstance(query, (str, os.PathLike)):
        now = Fingerprint.of(Path(query))
        for file, kept in stored.fingerprints.items():
            if kept.path_hash == now.path_hash or (now.is_missing and file == os.fspath(query)):
                return file, now.is_missing or now == kept
    return None, False


def _encode(encode: Callable[..., Any], query: Any, sample_rate: int | None, batch_size: int) -> np.ndarray:
    """Return the embeddings (T, D) of the query's frames, or of the whole query (1, D)."""
    clips = encode(query, sample_rate=sample_rate, batch_size=batch_size)
    clips = clips.features if isinstance(clips, Frames) else clips
    if len(clips) != 1:
        raise ConfigError(f"A query is one clip, got {len(clips)}; search for them one by one.")
    return clips[0].reshape(-1, clips.shape[-1]).float().cpu().numpy()


def _matches(wanted: np.ndarray, own: str | None, stored: EmbeddingsFile) -> Iterator[Match]:
    mean = wanted.mean(axis=0, dtype=np.float64)
    num_skipped = 0
    for row in stored.rows():
        frames = frames_of(row)
        if frames.shape[1] != len(mean):
            raise ConfigError(
                f"{stored.path} holds embeddings of {frames.shape[1]} values, but the query has {len(mean)}; "
                "embed both with the same model."
            )
        if not np.isfinite(frames).all():
            num_skipped += 1
        elif row.file != own and row.is_segments and row.timestamps_s is not None:
            scores = unit_rows(frames) @ unit_rows(mean[None])[0]
            for score, (start_s, end_s) in zip(scores.tolist(), row.timestamps_s.tolist(), strict=True):
                yield Match(row.file, score, start_s, end_s)
        elif row.file != own:
            yield _best_section(row, frames, mean, len(wanted))
    if num_skipped:
        logger.warning("%d embeddings in %s are not finite and were skipped.", num_skipped, stored.path)


def _best_section(row: Row, frames: np.ndarray, wanted: np.ndarray, length: int) -> Match:
    """Return the section of ``length`` frames, or all if there are fewer, with the most similar mean."""
    length = min(length, len(frames))
    sums = np.concatenate([np.zeros((1, frames.shape[1])), frames.cumsum(axis=0, dtype=np.float64)])
    scores = unit_rows(sums[length:] - sums[:-length]) @ unit_rows(wanted[None])[0]  # (T - length + 1,)
    first = int(scores.argmax())
    times = row.timestamps_s
    if times is None:
        return Match(row.file, float(scores[first]))
    half_s = (times[1] - times[0]) / 2 if len(times) > 1 else times[0]
    start_s, end_s = times[first] - half_s, times[first + length - 1] + half_s
    return Match(row.file, float(scores[first]), max(0.0, float(start_s)), float(end_s))
