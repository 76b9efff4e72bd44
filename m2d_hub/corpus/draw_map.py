"""The job of drawing many sounds as a map on one page."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2d_hub.audio.clips import open_audio, read_part
from m2d_hub.checks import COUNT, SHARE, Numbers, require, require_choice
from m2d_hub.corpus.geometry import Projection, require_sklearn
from m2d_hub.corpus.library import open_library
from m2d_hub.corpus.map_page import EXCERPT_S, Heading, page_of
from m2d_hub.corpus.records import Origin
from m2d_hub.corpus.sound_map import SoundMap, map_of
from m2d_hub.corpus.stored import Stored, frames_of, is_stored, load_model_of, read_stored
from m2d_hub.errors import AudioError, ConfigError, M2DError
from m2d_hub.io import replacing
from m2d_hub.look import LEVELS, picture_data, require_matplotlib
from m2d_hub.model import M2D
from m2d_hub.plots import RANGE_DB, spectrogram_db
from m2d_hub.pretrained.registry import DEFAULT_TAGGER
from m2d_hub.results import Tag

logger = logging.getLogger(__name__)

MOST_SOUNDS = 20_000  # of a map: each is compared with each, and all are drawn
PICTURE_SIZE = (40, 96)  # mel bands and columns of it
_TAGS = 3  # of a sound
_BATCH = 1_024  # embeddings that are tagged at once
_NUMBERS = {
    "clusters": Numbers(least=1, is_whole=True, or_none="a number that fits the sounds"),
    "duplicate_score": SHARE,
    "thumbnails": COUNT,
}


@dataclass(frozen=True)
class _Sounds:
    """What a map is made of."""

    stored: Stored
    files: list[str]  # of the embeddings those to draw
    paths: dict[str, Path]  # of those that are there as they were embedded
    model: M2D | None  # which embedded them; None: it cannot be had
    failed: dict[str, str]  # why files are left out


def draw_map(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    projection: Projection = "pca",
    clusters: int | None = None,
    duplicate_score: float = 0.95,
    thumbnails: int = 500,
    progress: bool = False,
) -> SoundMap:
    """Draws the sounds of a folder as a map on one HTML page, with their clusters and duplicates.

    Near each other are sounds that are alike to the model. The page stands alone: it needs no network and no
    file beside it.

    Args:
        source: A folder, which is searched through and embedded once, into the cache; or what
            :func:`m2d_hub.embed_files` wrote, of whose frames and layers the mean over time is taken.
        out: The ``.html`` to write. None: nowhere.
        model: What :func:`m2d_hub.load_model` takes. None: ``m2d-mini-tags`` for a folder, and for embeddings
            the model that they name; where that cannot be had, there are neither tags nor spectrograms.
        device: As for :func:`m2d_hub.load_model`.
        projection: ``pca``, the two directions in which the sounds differ most; or ``tsne``, which keeps
            neighbours together and makes nothing of distances.
        clusters: Their number; None: that which fits the sounds best, 20 at most.
        duplicate_score: Least cosine similarity of two sounds that are told as the same.
        thumbnails: Most sounds that are shown with a spectrogram; of more, evenly many are left out. Each
            takes about 5 KB of the page.
        progress: Shows bars on the standard error stream.

    Returns:
        The map. Files that cannot be read, and embeddings that are not finite, are among its ``failed``.

    Raises:
        ConfigError: ``source`` holds less than two sounds that can be used, or more than 20,000; a setting is
            out of its range; or scikit-learn or, for ``out``, matplotlib is not installed.
        M2DError: The model cannot be loaded.
    """
    _check(out, projection, clusters, duplicate_score, thumbnails)
    sounds = _open(source, model, device, progress)
    vectors, failed = _vectors(sounds)
    files = list(vectors)
    _check_files(source, files, clusters, failed)
    matrix = np.stack([vectors[file] for file in files])
    result = map_of(
        files,
        matrix,
        _tags(sounds.model, matrix),
        projection=projection,
        clusters=clusters,
        duplicate_score=duplicate_score,
        failed=failed,
    )
    if out is not None:
        model_name = str(sounds.stored.settings["model"])
        shown_name = os.path.basename(model_name) if os.path.isabs(model_name) else model_name
        heading = Heading(os.path.basename(os.path.abspath(source)), shown_name)
        pictures = _pictures(sounds, files, thumbnails, progress)
        with replacing(Path(out)) as partial:
            partial.write_text(page_of(result, heading, pictures), encoding="utf-8", newline="\n")
    return result


def _check(out: str | os.PathLike[str] | None, projection: str, clusters: Any, *numbers: Any) -> None:
    """Refuses settings, before any work."""
    require_choice("projection", projection, ("pca", "tsne"))
    for (name, allowed), given in zip(_NUMBERS.items(), (clusters, *numbers), strict=True):
        require(given in allowed, f"{name} must be {allowed}, got {given!r}.")
    if clusters != 1 or projection == "tsne":
        require_sklearn()
    if out is not None:
        is_page = Path(out).suffix.lower() in (".html", ".htm")
        require(is_page, f"out must end in .html, since a map is a page, got {os.fspath(out)!r}.")
        require_matplotlib()


def _open(
    source: str | os.PathLike[str], model: str | os.PathLike[str] | None, device: str | None, progress: bool
) -> _Sounds:
    if not is_stored(source):
        chosen = DEFAULT_TAGGER if model is None else model
        library = open_library(source, chosen, device, most=MOST_SOUNDS, progress=progress)
        stored = read_stored(library.embeddings)
        files = [file for file in stored.origins if file in library.paths]
        return _Sounds(stored, files, library.paths, load_model_of(stored, chosen, device), library.failed)
    stored = read_stored(source)
    number = len(stored.origins)
    require(
        number <= MOST_SOUNDS, f"{stored.path} holds {number:,} sounds, at most {MOST_SOUNDS:,} can be used."
    )
    paths = {file: Path(file) for file, origin in stored.origins.items() if Origin.of(Path(file)) == origin}
    return _Sounds(stored, list(stored.origins), paths, _model_of(stored, model, device), {})


def _model_of(stored: Stored, name: str | os.PathLike[str] | None, device: str | None) -> M2D | None:
    """The model that embeddings name; where none is given, they will do without it."""
    try:
        return load_model_of(stored, name, device)
    except M2DError as error:
        if name is not None:
            raise
        logger.warning("No tags and no spectrograms, since the model cannot be loaded: %s", error)
        return None


def _vectors(sounds: _Sounds) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Embeddings (D,) by file, and why files are left out."""
    wanted, failed = set(sounds.files), dict(sounds.failed)
    vectors = {}
    for record in sounds.stored.records():
        if record.file not in wanted:
            continue
        vector = frames_of(record).mean(axis=0)
        if np.isfinite(vector).all():
            vectors[record.file] = vector
        else:
            failed[record.file] = f"{record.file} has an embedding that is not finite."
    return vectors, failed


def _check_files(
    source: str | os.PathLike[str], files: Sequence[str], clusters: int | None, failed: dict[str, str]
) -> None:
    if len(files) < 2:
        why = f"; {len(failed)} cannot be used, the first: {next(iter(failed.values()))}" if failed else "."
        raise ConfigError(f"a map needs at least two sounds, and {os.fspath(source)} holds {len(files)}{why}")
    require(
        clusters is None or clusters <= len(files),
        f"clusters must be at most the number of sounds, which is {len(files)}, got {clusters}.",
    )


def _tags(model: M2D | None, clips: np.ndarray) -> list[list[Tag]]:
    if model is None or model.head is None:
        return [[] for _ in clips]
    batches = torch.from_numpy(clips).split(_BATCH)
    return [tags for batch in batches for tags in model.classify_embeddings(batch, top_k=_TAGS)]


def _pictures(sounds: _Sounds, files: Sequence[str], most: int, progress: bool) -> dict[str, str]:
    """Small spectrograms as addresses, by file, of at most so many files, which are evenly chosen."""
    from tqdm import tqdm

    there = [file for file in files if file in sounds.paths]
    if sounds.model is None or not there or not most:
        return {}
    rows = np.linspace(0, len(there) - 1, min(most, len(there))).round().astype(int)
    pictures = {}
    for row in tqdm(rows, unit="picture", disable=not progress or None):
        try:
            pictures[there[row]] = _picture(sounds.model, sounds.paths[there[row]])
        except AudioError as error:  # it was there a moment ago
            logger.warning("No spectrogram: %s", error)
    return pictures


@torch.no_grad()
def _picture(model: M2D, path: Path) -> str:
    waveform = read_part(open_audio(path, model.sample_rate)[0], 0, EXCERPT_S * model.sample_rate)
    log_mel = model.frontend.log_mel(waveform[None].to(model.device)).float().cpu()  # (1, F, T)
    small = torch.nn.functional.adaptive_max_pool2d(log_mel, PICTURE_SIZE)[0]
    return picture_data(spectrogram_db(small.numpy()), LEVELS, -RANGE_DB, 0)
