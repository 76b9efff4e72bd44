"""Maps of embeddings: projection, clusters and duplicates.

Shapes: N sounds, D embedding dimensions, C principal components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m2d_hub.corpus.search import unit_rows
from m2d_hub.results import Tag

Projection = Literal["pca", "tsne"]

MAX_CLUSTERS = 20  # if their number is not given
MIN_SILHOUETTE = 0.05  # mean silhouette below which sounds are not clustered
_COMPONENTS = 50  # for clusters and t-SNE
_MIN_CLUSTER_SIZE = 3  # on average, if the number of clusters is not given
_SAMPLE = 2_000  # sounds that decide on the number of clusters
_BLOCK = 1_024  # sounds compared with all others at once
_TOLERANCE = 1e-5  # distance of unit vectors that are equal but for rounding


@dataclass(frozen=True)
class MapPoint:
    """A sound on a map."""

    file: str  # its name in the embeddings; its absolute path if the source is a folder
    x: float
    y: float
    cluster: int  # from 1, in descending order of size
    tags: list[Tag]  # the most likely ones, in descending order; empty if the model has no head


@dataclass(frozen=True)
class Duplicates:
    """Sounds with nearly equal embeddings."""

    files: list[str]  # as in :attr:`MapPoint.file`; each is nearly equal to another one
    score: float  # lowest cosine similarity of the first to the others


@dataclass(frozen=True)
class SoundMap:
    """Positions, clusters and duplicates of sounds."""

    points: list[MapPoint]
    duplicates: list[Duplicates]
    projection: Projection
    kept: float | None  # share of the embeddings' variance that the map shows; None for t-SNE
    failed: dict[str, str]  # reasons why files are skipped, by name

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return max(point.cluster for point in self.points)


def map_sounds(
    files: Sequence[str],
    vectors: np.ndarray,
    tags: Sequence[list[Tag]],
    failed: dict[str, str],
    *,
    projection: Projection,
    clusters: int | None,
    duplicate_score: float,
) -> SoundMap:
    """Map the embeddings (N, D) of files; the settings are those of :func:`m2d_hub.draw_map`."""
    unit = unit_rows(vectors)
    components, shares = _principal_components(unit)
    positions = components[:, :2] if projection == "pca" else _neighbour_map(components)
    points = [
        MapPoint(file, float(x), float(y), int(number), of_file)
        for file, (x, y), number, of_file in zip(
            files, positions, _cluster_numbers(components, clusters), tags, strict=True
        )
    ]
    duplicates = [
        Duplicates([files[row] for row in rows], min(float((unit[rows[1:]] @ unit[rows[0]]).min()), 1.0))
        for rows in _duplicate_groups(unit, duplicate_score)
    ]
    kept = float(shares[:2].sum()) if projection == "pca" else None
    return SoundMap(points, duplicates, projection, kept, failed)


def _principal_components(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal components (N, C) of vectors (N, D), and each one's share of the variance.

    There are 2 to 50 components; those that do not exist are zero.
    """
    from sklearn.decomposition import PCA

    num_components = min(_COMPONENTS, *unit.shape)
    shares = np.zeros(num_components)
    components = np.zeros((len(unit), num_components))
    if _spread(unit) > _TOLERANCE:
        pca = PCA(num_components, random_state=0).fit(unit)
        components, shares = pca.transform(unit), pca.explained_variance_ratio_
    missing = max(0, 2 - num_components)
    return np.pad(components, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def _neighbour_map(components: np.ndarray) -> np.ndarray:
    """Return positions (N, 2) by t-SNE, which keeps neighbours together but not distances."""
    from sklearn.manifold import TSNE

    if _spread(components) <= _TOLERANCE:  # t-SNE divides by the spread
        return np.zeros((len(components), 2))
    perplexity = min(30.0, (len(components) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)


def _cluster_numbers(components: np.ndarray, num_clusters: int | None = None) -> np.ndarray:
    """Return the cluster (N,) of each sound by k-means, numbered from 1 in descending order of size.

    Args:
        components: Principal components (N, C).
        num_clusters: Number of clusters; None for the number with the highest mean silhouette (Rousseeuw,
            1987), or 1 if that is below MIN_SILHOUETTE.
    """
    chosen = _best_number(components) if num_clusters is None else num_clusters
    if chosen == 1:
        return np.ones(len(components), int)
    labels = _k_means(components, chosen)
    names, firsts, sizes = np.unique(labels, return_index=True, return_counts=True)
    ranks = np.empty(chosen, int)
    ranks[names[np.lexsort((firsts, -sizes))]] = np.arange(1, len(names) + 1)
    return ranks[labels]


def _best_number(components: np.ndarray) -> int:
    from sklearn.metrics import silhouette_score

    sample = components[np.linspace(0, len(components) - 1, min(len(components), _SAMPLE)).astype(int)]
    num_distinct = len(np.unique(sample.round(5), axis=0))
    highest = min(MAX_CLUSTERS, len(sample) // _MIN_CLUSTER_SIZE, num_distinct - 1)
    scores = {number: silhouette_score(sample, _k_means(sample, number)) for number in range(2, highest + 1)}
    best = max(scores, key=scores.__getitem__, default=1)
    return best if scores.get(best, 0.0) > MIN_SILHOUETTE else 1


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


def _spread(vectors: np.ndarray) -> float:
    return float(np.abs(vectors - vectors.mean(axis=0)).max(initial=0))
