"""What a map of sounds says: where each one is, its cluster, and which are there more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2d_hub.corpus.geometry import (
    Projection,
    clusters_of,
    duplicate_groups,
    neighbour_map,
    principal_components,
    unit_rows,
)
from m2d_hub.results import Tag


@dataclass(frozen=True)
class MapPoint:
    """A sound on a map."""

    file: str  # as it is named in the embeddings; of a folder its whole path
    x: float
    y: float
    cluster: int  # from 1, the largest
    tags: list[Tag]  # the likeliest, the best first; none where the model has no head


@dataclass(frozen=True)
class Duplicates:
    """Sounds that are nearly the same to the model."""

    files: list[str]  # as in :attr:`MapPoint.file`; each is nearly the same as another of them
    score: float  # the lowest cosine similarity of the first to the others


@dataclass(frozen=True)
class SoundMap:
    """Where sounds are on a map, which form clusters, and which are there more than once."""

    points: list[MapPoint]
    duplicates: list[Duplicates]
    projection: Projection
    kept: float | None  # share of the embeddings' variance that the map shows; None: t-SNE knows none
    failed: dict[str, str]  # why files are left out, by name

    @property
    def num_clusters(self) -> int:
        """Clusters, whose numbers are 1 to this."""
        return max(point.cluster for point in self.points)


def map_of(
    files: Sequence[str],
    vectors: np.ndarray,
    tags: Sequence[list[Tag]],
    *,
    projection: Projection,
    clusters: int | None,
    duplicate_score: float,
    failed: dict[str, str],
) -> SoundMap:
    """Arranges embeddings (N, D) of files; the settings are those of :func:`m2d_hub.draw_map`."""
    unit = unit_rows(vectors)
    components, shares = principal_components(unit)
    places = components[:, :2] if projection == "pca" else neighbour_map(components)
    labels = clusters_of(components, clusters)
    points = [
        MapPoint(file, float(x), float(y), int(label), list(of_file))
        for file, (x, y), label, of_file in zip(files, places, labels, tags, strict=True)
    ]
    duplicates = [_duplicates(files, unit, rows) for rows in duplicate_groups(unit, duplicate_score)]
    kept = float(shares[:2].sum()) if projection == "pca" else None
    return SoundMap(points, duplicates, projection, kept, failed)


def _duplicates(files: Sequence[str], unit: np.ndarray, rows: np.ndarray) -> Duplicates:
    lowest = float((unit[rows[1:]] @ unit[rows[0]]).min())
    return Duplicates([files[row] for row in rows], min(lowest, 1.0))
