"""Embeddings of a folder's sounds, computed once and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2d_hub.corpus.embed_files import embed_files
from m2d_hub.corpus.search import Match, unit_rows
from m2d_hub.corpus.sources import Source, find_sources
from m2d_hub.corpus.stored import EmbeddingsFile, frames_of, read_embeddings
from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError, DownloadError
from m2d_hub.io import locked
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import cache_root, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingIndex:
    """Embeddings of the sounds of a folder."""

    folder: Path
    paths: dict[str, Path]  # by name, in the order of the embeddings
    embeddings: np.ndarray  # (N, D) float32
    failed: dict[str, str]  # reasons why files are skipped, by name

    def nearest(self, embedding: np.ndarray, top_k: int) -> list[Match]:
        """Return the sounds most similar to an embedding (D,), in descending order of similarity."""
        scores = unit_rows(self.embeddings) @ unit_rows(embedding[None])[0]
        files = list(self.paths)
        return [Match(files[row], float(scores[row])) for row in (-scores).argsort(kind="stable")[:top_k]]


def open_index(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str],
    device: str | None,
    *,
    max_files: int | None = None,
    progress: bool = True,
) -> EmbeddingIndex:
    """Embed the sounds of a folder that are not in the cache yet.

    A damaged or outdated cache is rebuilt. Without a writable cache, the embeddings are not kept.

    Args:
        folder: Folder, searched recursively.
        model: Model, as for :func:`m2d_hub.load_model`.
        device: Device, as for :func:`m2d_hub.load_model`.
        max_files: Maximum number of sounds in the folder.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: ``folder`` is not a folder, contains no readable audio, or more than ``max_files`` files.
        M2DError: The model cannot be loaded.
    """
    if not os.path.isdir(folder):
        problem = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise ConfigError(f"{os.fspath(folder)} {problem}; give a folder of audio files.")
    found = find_sources(Path(os.path.abspath(folder)))
    paths = {source.file: source.path for source in found if isinstance(source.path, Path)}
    sources = [source for source in found if source.file in paths]  # without members of tar shards
    if max_files is not None and len(sources) > max_files:
        raise ConfigError(f"{os.fspath(folder)} has {len(sources):,} sounds; the maximum is {max_files:,}.")
    key = f"{os.path.abspath(folder)}\n{sha256_of_model(resolve(model))}"
    cached = cache_root() / "folders" / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.npz"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(cached.with_suffix(".lock")))
        except DownloadError as error:
            logger.warning("The embeddings of %s are not kept: %s", folder, error)
            cached = Path(stack.enter_context(tempfile.TemporaryDirectory())) / cached.name
        try:
            failed = _embed(sources, cached, model, device, progress)
            vectors, not_finite = mean_embeddings(read_embeddings(cached))
        except ConfigError as error:
            if not _remove(cached):
                raise
            logger.info("%s is rebuilt: %s", cached, error)
            failed = _embed(sources, cached, model, device, progress)
            vectors, not_finite = mean_embeddings(read_embeddings(cached))
    failed |= not_finite
    paths = {file: paths[file] for file in vectors if file in paths}  # without deleted files
    if not paths:
        raise ConfigError(f"{os.fspath(folder)} has no usable file; the first: {next(iter(failed.values()))}")
    return EmbeddingIndex(Path(folder), paths, np.stack([vectors[file] for file in paths]), failed)


def mean_embeddings(stored: EmbeddingsFile) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the mean embedding (D,) of each file, and why files are skipped."""
    vectors, failed = {}, {}
    for row in stored.rows():
        vector = frames_of(row).mean(axis=0)
        if np.isfinite(vector).all():
            vectors[row.file] = vector
        else:
            failed[row.file] = f"{row.file} has an embedding that is not finite."
    if len({vector.shape for vector in vectors.values()}) > 1:
        raise ConfigError(f"{stored.path} holds embeddings of several widths; embed the files again.")
    return vectors, failed


def _embed(
    sources: list[Source], cached: Path, model: str | os.PathLike[str], device: str | None, progress: bool
) -> dict[str, str]:
    """Embed sources into a file and return why some of them cannot be read, by name."""
    summary = embed_files(sources, cached, model=model, device=device, progress=progress)
    rows = [] if summary.errors_file is None else read_table(Path(summary.errors_file), ["file", "error"])
    failed = {row.cells["file"]: row.cells["error"] for row in rows}
    if not cached.exists():
        raise ConfigError(f"No file can be read; the first of {len(failed)}: {next(iter(failed.values()))}")
    return failed


def _remove(cached: Path) -> bool:
    """Remove a cached file and the files beside it; return False if there are none."""
    existing = list(cached.parent.glob(f"{cached.name}*"))
    for path in existing:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(existing)
