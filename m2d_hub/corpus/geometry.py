"""Embeddings as points: their places on a map, the clusters they form, and those that nearly coincide.

Shapes: N sounds, D values of an embedding, C components.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from m2d_hub.io import importing

Projection = Literal["pca", "tsne"]

MOST_CLUSTERS = 20  # that are chosen without being asked for
LEAST_SILHOUETTE = 0.05  # of clusters; what is below falls into none, and stays together
_COMPONENTS = 50  # in which clusters and neighbours are sought
_LEAST_SIZE = 3  # sounds of a cluster, on average, where the number is chosen
_SAMPLE = 2_000  # sounds by which the number of clusters is chosen
_BLOCK = 1_024  # sounds that are compared with all others at once
_ROUNDING = 1e-6  # of the cosine of a vector with itself


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) at the length 1, so that their products are cosines."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)


def principal_components(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, C) in the directions in which vectors (N, D) differ most, and each one's share of variance.

    There are 50 at most, and 2 at least. A direction's largest weight is positive, so that a map is not
    mirrored by the library that computes it.
    """
    centred = unit - unit.mean(axis=0)
    is_wide = len(centred) < centred.shape[1]
    products = centred @ centred.T if is_wide else centred.T @ centred  # the smaller of the two
    variances, vectors = np.linalg.eigh(products.astype(np.float64))
    variances, vectors = variances[::-1].clip(min=0), vectors[:, ::-1][:, :_COMPONENTS]
    directions = centred.T @ vectors if is_wide else vectors  # (D, C), of any length
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)[0]
    places = vectors * np.sqrt(variances[:_COMPONENTS]) if is_wide else centred @ vectors
    places = places * np.where(largest < 0, -1, 1)
    shares = variances / max(variances.sum(), np.finfo(np.float64).tiny)
    missing = max(0, 2 - places.shape[1])
    return np.pad(places, ((0, 0), (0, missing))), np.pad(shares, (0, missing))


def neighbour_map(components: np.ndarray) -> np.ndarray:
    """Places (N, 2) by t-SNE, which keeps neighbours together and lets distances go."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(components) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)


def clusters_of(components: np.ndarray, number: int | None = None) -> np.ndarray:
    """The cluster (N,) of each sound by k-means, counted from 1, the largest first.

    Args:
        components: (N, C).
        number: Of clusters; None: that of the best mean silhouette (Rousseeuw, 1987), and 1 where none is
            above LEAST_SILHOUETTE.
    """
    chosen = _best_number(components) if number is None else number
    if chosen == 1:
        return np.ones(len(components), int)
    labels = _k_means(components, chosen)
    sizes = np.bincount(labels, minlength=chosen)
    firsts = [int((labels == label).argmax()) for label in range(chosen)]
    ranked = sorted(range(chosen), key=lambda label: (-sizes[label], firsts[label]))
    return np.argsort(ranked)[labels] + 1


def _best_number(components: np.ndarray) -> int:
    from sklearn.metrics import silhouette_score

    sample = components[np.linspace(0, len(components) - 1, min(len(components), _SAMPLE)).astype(int)]
    most = min(MOST_CLUSTERS, len(sample) // _LEAST_SIZE, _distinct(sample) - 1)
    scores = {
        number: float(silhouette_score(sample, _k_means(sample, number))) for number in range(2, most + 1)
    }
    best = max(scores, key=scores.__getitem__, default=1)
    return best if scores.get(best, 0.0) > LEAST_SILHOUETTE else 1


def _distinct(components: np.ndarray) -> int:
    return len(np.unique(components.round(5), axis=0))


def _k_means(components: np.ndarray, number: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(number, n_init=5, random_state=0).fit_predict(components)


def duplicate_groups(unit: np.ndarray, least: float) -> list[np.ndarray]:
    """Indices of vectors (N, D) of the length 1 that are nearly the same, a sorted array a group.

    Each of a group has a cosine of at least ``least`` with another of it, and with none outside.
    """
    group = np.arange(len(unit))
    for first in range(0, len(unit), _BLOCK):
        alike = unit[first : first + _BLOCK] @ unit.T >= least - _ROUNDING
        for row, others in enumerate(alike, first):
            joined = np.union1d(group[others], group[row])
            if len(joined) > 1:
                group[np.isin(group, joined)] = joined[0]
    names, sizes = np.unique(group, return_counts=True)
    return [np.flatnonzero(group == name) for name in names[sizes > 1]]


def require_sklearn() -> None:
    """Raises a ConfigError unless scikit-learn is installed."""
    way_out = "Or give clusters=1 and projection='pca'."
    with importing("scikit-learn", "a map with clusters or t-SNE", "sklearn", way_out):
        import sklearn  # noqa: F401
