"""Embeddings of many sounds in memory; those of a folder are computed once and kept in the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2d_hub.corpus.embed_files import embed_files
from m2d_hub.corpus.search import Match, unit_rows
from m2d_hub.corpus.sources import Source, find_sources
from m2d_hub.corpus.stored import EmbeddingsFile, frames_of, read_embeddings
from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError
from m2d_hub.io import locked
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import cache_root, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingIndex:
    """Embeddings of sounds, with the mean over time of frames."""

    folder: Path  # or the output
    files: list[str]  # names; absolute paths if they are of a folder
    embeddings: np.ndarray  # (N, D) float32
    failed: dict[str, str]  # reasons why files are skipped, by name

    def nearest(self, embedding: np.ndarray, top_k: int | None) -> list[Match]:
        """Return the sounds most similar to an embedding (D,), all if ``top_k`` is None."""
        scores = unit_rows(self.embeddings) @ unit_rows(embedding[None])[0]
        rows = (-scores).argsort(kind="stable")[:top_k]
        return [Match(self.files[row], float(scores[row])) for row in rows]


def read_index(stored: EmbeddingsFile) -> EmbeddingIndex:
    """Read the embeddings of an output.

    Raises:
        ConfigError: The output is damaged, or its embeddings differ in width.
    """
    vectors, failed = {}, {}
    for row in stored.rows():
        vector = frames_of(row).mean(axis=0)
        if np.isfinite(vector).all():
            vectors[row.file] = vector
        else:
            failed[row.file] = f"{row.file} has an embedding that is not finite."
    if len({vector.shape for vector in vectors.values()}) > 1:
        raise ConfigError(f"{stored.path} holds embeddings of several widths; embed the files again.")
    matrix = np.array(list(vectors.values()))
    return EmbeddingIndex(Path(str(stored.path)), list(vectors), matrix, failed)


def open_index(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str],
    device: str | None,
    *,
    max_files: int | None = None,
    progress: bool = True,
) -> EmbeddingIndex:
    """Embed the sounds of a folder that are not in the cache yet; a damaged cache is rebuilt.

    Args:
        folder: Folder, searched recursively.
        model: Model, as for :func:`m2d_hub.load_model`.
        device: Device, as for :func:`m2d_hub.load_model`.
        max_files: Maximum number of sounds in the folder.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: ``folder`` is not a folder, contains no readable audio, or more than ``max_files`` files.
        M2DError: The model cannot be loaded, or the cache cannot be written.
    """
    if not os.path.isdir(folder):
        problem = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise ConfigError(f"{os.fspath(folder)} {problem}; give a folder of audio files.")
    sources = [found for found in find_sources(os.path.abspath(folder)) if isinstance(found.path, Path)]
    if max_files is not None and len(sources) > max_files:
        raise ConfigError(f"{os.fspath(folder)} has {len(sources):,} sounds; the maximum is {max_files:,}.")
    key = f"{os.path.abspath(folder)}\n{sha256_of_model(resolve(model))}"
    cached = cache_root() / "folders" / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.npz"
    with locked(cached.with_suffix(".lock")):
        try:
            index, failed = _embed(sources, cached, model, device, progress)
        except ConfigError as error:
            logger.info("%s is rebuilt: %s", cached, error)
            for path in cached.parent.glob(f"{cached.name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            index, failed = _embed(sources, cached, model, device, progress)
    existing = {source.file for source in sources}
    rows = [row for row, file in enumerate(index.files) if file in existing]
    files = [index.files[row] for row in rows]
    failed |= index.failed
    if not files:
        raise ConfigError(f"{os.fspath(folder)} has no usable file; the first: {next(iter(failed.values()))}")
    return EmbeddingIndex(Path(folder), files, index.embeddings[rows], failed)


def _embed(
    sources: list[Source], cached: Path, model: str | os.PathLike[str], device: str | None, progress: bool
) -> tuple[EmbeddingIndex, dict[str, str]]:
    """Return the index of a cached output, and why files cannot be read."""
    summary = embed_files(sources, cached, model=model, device=device, progress=progress)
    rows = [] if summary.errors_file is None else read_table(Path(summary.errors_file), ["file", "error"])
    failed = {row.cells["file"]: row.cells["error"] for row in rows}
    if not cached.exists():
        raise ConfigError(f"No file can be read; the first of {len(failed)}: {next(iter(failed.values()))}")
    return read_index(read_embeddings(cached)), failed
