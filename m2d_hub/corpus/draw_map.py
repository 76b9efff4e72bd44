"""The job of mapping a folder or an output of ``m2d-hub embed``."""

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
from m2d_hub.checks import COUNT, POSITIVE_INTEGER, SHARE, require, require_choice
from m2d_hub.corpus.index import mean_embeddings, open_index
from m2d_hub.corpus.map_page import EXCERPT_SECONDS, map_page
from m2d_hub.corpus.records import Fingerprint
from m2d_hub.corpus.sound_map import Projection, SoundMap, map_sounds
from m2d_hub.corpus.stored import is_embeddings, load_model_of, read_embeddings
from m2d_hub.errors import AudioError, ConfigError, M2DError
from m2d_hub.hub import load_model
from m2d_hub.io import replacing, require_extra
from m2d_hub.model import M2D
from m2d_hub.plots import spectrogram_db, spectrogram_image
from m2d_hub.pretrained.registry import DEFAULT_TAGGER
from m2d_hub.results import Tag

logger = logging.getLogger(__name__)

MAX_SOUNDS = 20_000  # each is compared with each, and all are drawn
_IMAGE_SIZE = (40, 96)  # mel bands and columns
_NUM_TAGS = 3  # of a sound
_BATCH = 1_024  # embeddings tagged at once
_NUMBERS = {
    "clusters": POSITIVE_INTEGER,
    "duplicate_score": SHARE,
    "thumbnails": COUNT,
}


@dataclass(frozen=True)
class _Sounds:
    vectors: dict[str, np.ndarray]  # embeddings (D,) by name
    paths: dict[str, Path]  # of files that exist as they were embedded
    model: M2D | None  # None if it cannot be loaded
    model_name: str
    failed: dict[str, str]  # reasons why files are skipped


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
    """Map the sounds of a folder, with clusters and duplicates, and write the map as an HTML page.

    Similar sounds are placed close together. The page needs neither a network nor other files.

    Args:
        source: A folder, searched recursively and embedded once, into the cache; or an output of
            :func:`m2d_hub.embed_files`, of whose frames and layers the mean over time is used.
        out: HTML file to write; None for none.
        model: Model, as for :func:`m2d_hub.load_model`. None: ``m2d-mini-tags`` for a folder, and the model
            named in the embeddings otherwise; if that cannot be loaded, there are no tags and spectrograms.
        device: Device, as for :func:`m2d_hub.load_model`.
        projection: ``pca`` for the two directions of largest variance, or ``tsne``, which keeps neighbours
            together but not distances.
        clusters: Number of clusters; None for the number that fits the sounds best, at most 20.
        duplicate_score: Minimum cosine similarity to count as duplicates.
        thumbnails: Maximum number of sounds with a spectrogram, evenly chosen. Each adds about 3 KB to the
            page.
        progress: Show progress bars on standard error.

    Returns:
        The map. Files that cannot be read and embeddings that are not finite are in ``failed``.

    Raises:
        ConfigError: ``source`` has fewer than two usable sounds or more than 20,000; a setting is out of
            range; or a package of ``m2d-hub[map]`` is not installed.
        M2DError: The model cannot be loaded.
    """
    _check_settings(out, projection, 1 if clusters is None else clusters, duplicate_score, thumbnails)
    sounds = _open(source, model, device, progress)
    files, failed = list(sounds.vectors), sounds.failed
    if len(files) < 2:
        reason = f"; {len(failed)} are skipped, the first: {next(iter(failed.values()))}" if failed else "."
        raise ConfigError(f"A map needs at least two sounds; {os.fspath(source)} has {len(files)}{reason}")
    if clusters is not None and clusters > len(files):
        raise ConfigError(f"clusters must be at most the number of sounds, {len(files)}, got {clusters}.")
    matrix = np.stack(list(sounds.vectors.values()))
    result = map_sounds(
        files,
        matrix,
        _tags(sounds.model, matrix),
        failed,
        projection=projection,
        clusters=clusters,
        duplicate_score=duplicate_score,
    )
    if out is not None:
        images = _images(sounds, thumbnails, progress)
        title = f"Map of {os.path.basename(os.path.abspath(source))}"
        name = sounds.model_name
        name = os.path.basename(os.path.abspath(name)) if os.path.exists(name) else name
        with replacing(Path(out)) as partial:
            partial.write_text(map_page(result, title, name, images), "utf-8", newline="\n")
    return result


def _check_settings(out: Any, projection: str, *numbers: Any) -> None:
    """Check settings before any work."""
    require_choice("projection", projection, ("pca", "tsne"))
    for (name, allowed), value in zip(_NUMBERS.items(), numbers, strict=True):
        require(value in allowed, f"{name} must be {allowed}, got {value!r}.")
    is_page = out is None or Path(out).suffix.lower() in (".html", ".htm")
    require(is_page, f"out must end in .html, got {out}.")
    require_extra("map", "a map")


def _open(
    source: str | os.PathLike[str], model: str | os.PathLike[str] | None, device: str | None, progress: bool
) -> _Sounds:
    if not is_embeddings(source):
        chosen = DEFAULT_TAGGER if model is None else model
        index = open_index(source, chosen, device, max_files=MAX_SOUNDS, progress=progress)
        vectors = dict(zip(index.paths, index.embeddings, strict=True))
        loaded = load_model(chosen, device=device)
        return _Sounds(vectors, index.paths, loaded, os.fspath(chosen), index.failed)
    stored = read_embeddings(source)
    if len(stored.fingerprints) > MAX_SOUNDS:
        raise ConfigError(
            f"{stored.path} contains {len(stored.fingerprints):,} sounds; the maximum is {MAX_SOUNDS:,}."
        )
    try:
        named: M2D | None = load_model_of(stored, model, device)
    except M2DError as error:
        if model is not None:
            raise
        logger.warning("No tags and no spectrograms, because the model cannot be loaded: %s", error)
        named = None
    paths = {
        file: Path(file)
        for file, fingerprint in stored.fingerprints.items()
        if Fingerprint.of(Path(file)) == fingerprint
    }
    vectors, failed = mean_embeddings(stored)
    return _Sounds(vectors, paths, named, str(model or stored.settings["model"]), failed)


def _tags(model: M2D | None, clips: np.ndarray) -> Sequence[list[Tag]]:
    if model is None or model.head is None:
        return [[] for _ in clips]
    batches = torch.from_numpy(clips).split(_BATCH)
    return [tags for batch in batches for tags in model.classify_embeddings(batch, top_k=_NUM_TAGS)]


def _images(sounds: _Sounds, max_images: int, progress: bool) -> dict[str, bytes]:
    """Return spectrograms as JPEGs, by name, of at most ``max_images`` sounds, evenly chosen."""
    from tqdm import tqdm

    files = [file for file in sounds.vectors if file in sounds.paths]
    if sounds.model is None or not files or not max_images:
        return {}
    rows = np.linspace(0, len(files) - 1, min(max_images, len(files))).round().astype(int)
    images = {}
    for row in tqdm(rows, unit="image", disable=not progress or None):
        try:
            images[files[row]] = _image(sounds.model, sounds.paths[files[row]])
        except AudioError as error:  # the file was deleted since
            logger.warning("No spectrogram: %s", error)
    return images


@torch.no_grad()
def _image(model: M2D, path: Path) -> bytes:
    waveform = read_part(open_audio(path, model.sample_rate)[0], 0, EXCERPT_SECONDS * model.sample_rate)
    log_mel = model.frontend.log_mel(waveform[None].to(model.device)).float().cpu()  # (1, F, T)
    small = torch.nn.functional.adaptive_max_pool2d(log_mel, _IMAGE_SIZE)[0]
    return spectrogram_image(spectrogram_db(small.numpy()))
