"""Maps of sounds: positions, clusters and duplicates of the embeddings of a folder or an output.

Shapes: N sounds, D embedding dimensions, C principal components.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from m2d_hub.checks import POSITIVE_INTEGER, SHARE, require, require_choice
from m2d_hub.corpus.index import EmbeddingIndex, open_index, read_index
from m2d_hub.corpus.map_page import Duplicates, MapPoint, Projection, SoundMap, map_page
from m2d_hub.corpus.search import unit_rows
from m2d_hub.corpus.stored import is_embeddings, load_model_of, read_embeddings
from m2d_hub.errors import M2DError
from m2d_hub.hub import load_model
from m2d_hub.io import replacing, require_extra
from m2d_hub.model import M2D
from m2d_hub.pretrained.registry import DEFAULT_TAGGER
from m2d_hub.results import Tag

logger = logging.getLogger(__name__)


MAX_SOUNDS = 20_000  # each is compared with each, and all are drawn
MAX_CLUSTERS = 20  # if their number is not given
MIN_SILHOUETTE = 0.05  # mean silhouette below which sounds are not clustered
_COMPONENTS = 50  # for clusters and t-SNE
_SAMPLE = 2_000  # sounds that decide on the number of clusters
_BLOCK = 1_024  # sounds compared with all others, or tagged, at once
_TOLERANCE = 1e-5  # distance of unit vectors that are equal but for rounding
_NUM_TAGS = 3  # of a sound


def draw_map(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    projection: Projection = "pca",
    clusters: int | None = None,
    duplicate_score: float = 0.95,
    progress: bool = False,
) -> SoundMap:
    """Map the sounds of a folder, with clusters and duplicates, and write the map as an HTML page.

    Similar sounds are placed close together. The page needs neither a network nor other files.

    Args:
        source: A folder, searched recursively and embedded once, into the cache; or an output of
            :func:`m2d_hub.embed_files`, of whose frames and layers the mean over time is used.
        out: HTML file to write; None for none.
        model: Model, as for :func:`m2d_hub.load_model`. None: ``m2d-mini-tags`` for a folder, and the model
            named in the embeddings otherwise; if that cannot be loaded, there are no tags.
        device: Device, as for :func:`m2d_hub.load_model`.
        projection: ``pca`` for the two directions of largest variance, or ``tsne``, which keeps neighbours
            together but not distances.
        clusters: Number of clusters; None for the number that fits the sounds best, at most 20.
        duplicate_score: Minimum cosine similarity to count as duplicates.
        progress: Show progress bars on standard error.

    Returns:
        The map. Files that cannot be read and embeddings that are not finite are in ``failed``.

    Raises:
        ConfigError: ``source`` has fewer than two usable sounds or more than 20,000; a setting is out of
            range; or a package of ``m2d-hub[map]`` is not installed.
        M2DError: The model cannot be loaded.
    """
    require_choice("projection", projection, ("pca", "tsne"))
    numbers = (
        ("clusters", 1 if clusters is None else clusters, POSITIVE_INTEGER),
        ("duplicate_score", duplicate_score, SHARE),
    )
    for name, value, allowed in numbers:
        require(value in allowed, f"{name} must be {allowed}, got {value!r}.")
    is_page = out is None or Path(out).suffix.lower() in (".html", ".htm")
    require(is_page, f"out must end in .html, got {out}.")
    require_extra("map", "a map")
    index, loaded, model_name = _open(source, model, device, progress)
    num_sounds, skipped = len(index.files), next(iter(index.failed.values()), "none")
    few = f"A map needs at least two sounds; {os.fspath(source)} has {num_sounds}. Skipped: {skipped}"
    require(num_sounds > 1, few)
    require((clusters or 1) <= num_sounds, f"clusters must be at most {num_sounds}, the number of sounds.")
    result = _map(index, _tags(loaded, index.embeddings), projection, clusters, duplicate_score)
    if out is not None:
        title = f"Map of {os.path.basename(os.path.abspath(source))}"
        with replacing(Path(out)) as partial:
            partial.write_text(map_page(result, title, Path(model_name).name), "utf-8", newline="\n")
    return result


def _open(
    source: str | os.PathLike[str], model: str | os.PathLike[str] | None, device: str | None, progress: bool
) -> tuple[EmbeddingIndex, M2D | None, str]:
    """Return the embeddings, the model (None if it cannot be loaded), and its name."""
    if not is_embeddings(source):
        name = DEFAULT_TAGGER if model is None else model
        index = open_index(source, name, device, max_files=MAX_SOUNDS, progress=progress)
        return index, load_model(name, device=device), os.fspath(name)
    stored = read_embeddings(source)
    num_sounds = len(stored.fingerprints)
    require(num_sounds <= MAX_SOUNDS, f"{source} has {num_sounds:,} sounds; the maximum is {MAX_SOUNDS:,}.")
    try:
        loaded: M2D | None = load_model_of(stored, model, device)
    except M2DError as error:
        if model is not None:
            raise
        logger.warning("No tags, because the model cannot be loaded: %s", error)
        loaded = None
    return read_index(stored), loaded, str(model or stored.settings["model"])


def _map(
    index: EmbeddingIndex,
    tags: Sequence[list[Tag]],
    projection: Projection,
    clusters: int | None,
    duplicate_score: float,
) -> SoundMap:
    from sklearn.decomposition import PCA

    unit = unit_rows(index.embeddings)
    positions, kept, numbers = np.zeros((len(unit), 2)), 0.0, np.ones(len(unit), int)
    if np.ptp(unit, axis=0).max() > _TOLERANCE:  # else all sounds are equal
        pca = PCA(min(_COMPONENTS, *unit.shape), random_state=0)
        components = pca.fit_transform(unit)  # (N, C)
        positions = components[:, :2] if projection == "pca" else _neighbour_map(components)
        kept = float(pca.explained_variance_ratio_[:2].sum())
        numbers = _cluster_numbers(components, clusters or _best_number(components))
    values = zip(index.files, positions.tolist(), numbers.tolist(), tags, strict=True)
    points = [MapPoint(file, x, y, number, of_file) for file, (x, y), number, of_file in values]
    duplicates = []
    for rows in _duplicate_groups(unit, duplicate_score):
        score = float((unit[rows[1:]] @ unit[rows[0]]).min())
        duplicates.append(Duplicates([index.files[row] for row in rows], min(score, 1.0)))
    return SoundMap(points, duplicates, projection, kept if projection == "pca" else None, index.failed)


def _neighbour_map(components: np.ndarray) -> np.ndarray:
    """Return positions (N, 2) by t-SNE, which keeps neighbours together but not distances."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(components) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)


def _cluster_numbers(components: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return the cluster (N,) of each sound by k-means, numbered from 1 in descending order of size."""
    labels = _k_means(components, num_clusters)
    return np.argsort(np.argsort(-np.bincount(labels), kind="stable"))[labels] + 1


def _best_number(components: np.ndarray) -> int:
    """Return the number of clusters with the highest mean silhouette (Rousseeuw, 1987)."""
    from sklearn.metrics import silhouette_score

    sample = components[:: len(components) // _SAMPLE + 1]
    num_distinct = len(np.unique(sample.round(5), axis=0))
    highest = min(MAX_CLUSTERS, math.isqrt(len(sample)), num_distinct - 1)
    scores = {number: silhouette_score(sample, _k_means(sample, number)) for number in range(2, highest + 1)}
    scores[1] = MIN_SILHOUETTE
    return max(scores, key=scores.__getitem__)


def _k_means(components: np.ndarray, number: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(number, n_init=5, random_state=0).fit_predict(components)


def _duplicate_groups(unit: np.ndarray, min_score: float) -> list[np.ndarray]:
    """Return groups of nearly equal unit vectors (N, D), each as sorted row numbers.

    Each vector has a cosine of at least ``min_score`` with another one of its group, and with none outside.
    """
    group = np.arange(len(unit))
    for first in range(0, len(unit), _BLOCK):
        is_similar = unit[first : first + _BLOCK] @ unit.T >= min_score - 1e-6  # rounding of a product
        for row, others in enumerate(is_similar, first):
            joined = np.union1d(group[others], group[row])
            if len(joined) > 1:
                group[np.isin(group, joined)] = joined[0]
    names, sizes = np.unique(group, return_counts=True)
    return [np.flatnonzero(group == name) for name in names[sizes > 1]]


def _tags(model: M2D | None, clips: np.ndarray) -> Sequence[list[Tag]]:
    if model is None or model.head is None:
        return [[]] * len(clips)
    batches = torch.from_numpy(clips).split(_BLOCK)
    return [tags for batch in batches for tags in model.classify_embeddings(batch, top_k=_NUM_TAGS)]
