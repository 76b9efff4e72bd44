"""A folder whose sounds are searched or drawn: embedded once, kept in the cache."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from m2d_hub.corpus.embed_files import Summary, embed_files
from m2d_hub.corpus.records import Origin
from m2d_hub.corpus.search import Match, search
from m2d_hub.corpus.sources import Source, find_sources
from m2d_hub.corpus.stored import read_stored
from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import cache_root, resolve


@dataclass(frozen=True)
class Library:
    """The sounds of a folder and their embeddings."""

    folder: Path
    embeddings: Path
    paths: dict[str, Path]  # by name in the embeddings
    gone: int  # embeddings of files that are not there any more
    failed: dict[str, str]  # why files cannot be read, by name

    def nearest(self, waveform: torch.Tensor, model: M2D, top_k: int) -> list[Match]:
        """The sounds most similar to a waveform (S,) at the model's rate, of those that are still there."""
        matches = search(waveform, self.embeddings, model=model, top_k=top_k + self.gone)
        return [match for match in matches if match.file in self.paths][:top_k]


def open_library(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str],
    device: str | None,
    *,
    most: int | None = None,
    progress: bool = True,
) -> Library:
    """Embeds the sounds of a folder that are not embedded yet.

    Args:
        folder: Searched at any depth.
        model: What :func:`m2d_hub.load_model` takes.
        device: Likewise.
        most: Sounds that the folder may hold.
        progress: Shows a bar on the standard error stream.

    Raises:
        ConfigError: There is no such folder, or it holds no audio that can be read, or more than ``most``.
        M2DError: The model cannot be loaded.
    """
    if not os.path.isdir(folder):
        problem = "is no folder" if os.path.lexists(folder) else "does not exist"
        raise ConfigError(f"{os.fspath(folder)} {problem}: give a folder that holds sounds.")
    found = find_sources(Path(os.path.abspath(folder)))
    sources = [source for source in found if isinstance(source.path, Path)]  # which can be played
    if most is not None and len(sources) > most:
        raise ConfigError(
            f"folder {os.fspath(folder)} holds {len(sources):,} sounds, at most {most:,} can be used."
        )
    key = hashlib.sha256(f"{os.path.abspath(folder)}\n{sha256_of_model(resolve(model))}".encode()).hexdigest()
    kept = cache_root() / "folders" / f"{key[:16]}.npz"
    if kept.exists() and _is_stale(kept, sources):
        kept.unlink()
    kept.parent.mkdir(parents=True, exist_ok=True)
    summary = embed_files(sources, kept, model=model, device=device, progress=progress)
    paths = {source.file: source.path for source in sources if isinstance(source.path, Path)}
    failed = _failed(summary)
    if not kept.exists():
        raise ConfigError(
            f"folder {os.fspath(folder)}: none of its {len(sources)} files can be read; the first: "
            f"{next(iter(failed.values()))}"
        )
    gone = len(read_stored(kept).origins.keys() - paths.keys())
    return Library(Path(folder), kept, paths, gone, failed)


def _is_stale(kept: Path, sources: list[Source]) -> bool:
    """Whether files changed since they were embedded."""
    now = {source.file: Origin.of(source.path) for source in sources}
    return any(now.get(file, origin) != origin for file, origin in read_stored(kept).origins.items())


def _failed(summary: Summary) -> dict[str, str]:
    if summary.errors_file is None:
        return {}
    rows = read_table(Path(summary.errors_file), ["file", "error"])
    return {row.cells["file"]: row.cells["error"] for row in rows}
