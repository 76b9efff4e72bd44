"""The HTML page of a map: a plotly plot and lists, in one file that loads nothing."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from m2d_hub.io import as_text
from m2d_hub.plots import COLOURS, MIN_CERTAIN_SCORE
from m2d_hub.results import Tag

Projection = Literal["pca", "tsne"]
_MAX_SVG_POINTS = 2_000  # more points are drawn by WebGL
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down")  # with COLOURS, 30 combinations
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: auto; max-width: 76rem; padding: 1rem; font: 16px/1.45 system-ui, sans-serif; }}
h1, li, summary {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{introduction}</p>
<p><label>Find sounds by name or tag: <input type="search" id="find"></label></p>
{plot}
{lists}
</body>
</html>
"""
_SCRIPT = """
const map = document.getElementById("map");
document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  const found = (trace) => trace.text.flatMap((text, i) => text.toLowerCase().includes(wanted) ? [i] : []);
  Plotly.restyle(map, { selectedpoints: map.data.map((trace) => wanted ? found(trace) : null) });
});
"""


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


def map_page(result: SoundMap, title: str, model: str) -> str:
    """Return the page as HTML.

    Args:
        result: The map.
        title: Title of the page.
        model: Name of the model.
    """
    names = _names([*(point.file for point in result.points), *result.failed])
    clusters = _clusters(result, names)
    plot = _figure(clusters, names).to_html(
        full_html=False,
        div_id="map",
        include_plotlyjs=True,
        post_script=_SCRIPT,
        config={"displaylogo": False, "responsive": True, "scrollZoom": True},
    )
    return _PAGE.format(
        title=_escaped(title),
        introduction=_introduction(result, model),
        plot=plot,
        lists=_lists(result, clusters, names),
    )


def _names(files: Sequence[str]) -> dict[str, str]:
    """Return the name of each file relative to their common folder."""
    folders = {os.path.dirname(file) for file in files}
    is_mixed = len({os.path.isabs(folder) for folder in folders}) > 1
    common = "" if is_mixed else os.path.commonpath(folders)
    return {file: as_text(os.path.relpath(file, common) if common else file) for file in files}


def _clusters(result: SoundMap, names: Mapping[str, str]) -> dict[str, list[MapPoint]]:
    """Return the sounds of each cluster by its title: its number and the tag or folder of most sounds."""
    numbers = range(1, result.num_clusters + 1)
    groups = [[point for point in result.points if point.cluster == number] for number in numbers]
    titles = [_common_tag(group) or _common_folder(group, names) for group in groups]
    return {f"{number}{title}": group for number, title, group in zip(numbers, titles, groups, strict=True)}


def _common_tag(points: Sequence[MapPoint]) -> str:
    totals: Counter[str] = Counter()
    for point in points:
        totals.update({tag.label: tag.score for tag in point.tags})
    for label, total in totals.most_common(1):
        if total >= MIN_CERTAIN_SCORE * len(points):
            return f": {_escaped(label)}"
    return ""


def _common_folder(points: Sequence[MapPoint], names: Mapping[str, str]) -> str:
    folders = Counter(PurePath(names[point.file]).parent.name for point in points)
    folder, count = folders.most_common(1)[0]
    return f": {_escaped(folder)}" if folder and count > len(points) / 2 else ""


def _figure(clusters: Mapping[str, Sequence[MapPoint]], names: Mapping[str, str]) -> Any:
    import plotly.graph_objects as go

    num_points = sum(map(len, clusters.values()))
    scatter = go.Scatter if num_points <= _MAX_SVG_POINTS else go.Scattergl
    figure = go.Figure(layout={"template": "plotly_white", "height": 600, "dragmode": "pan"})
    for number, (title, points) in enumerate(clusters.items()):
        marker = {"color": COLOURS[number % len(COLOURS)], "symbol": _SYMBOLS[number % len(_SYMBOLS)]}
        trace = scatter(
            x=[point.x for point in points],
            y=[point.y for point in points],
            mode="markers",
            marker={**marker, "size": 9 if num_points <= 500 else 6},
            name=title,
            text=[_hover_text(point, names) for point in points],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_trace(trace)
    figure.update_layout(legend_title_text="Cluster", showlegend=True)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def _hover_text(point: MapPoint, names: Mapping[str, str]) -> str:
    certain = [tag for tag in point.tags if tag.score >= MIN_CERTAIN_SCORE]
    lines = [f"{tag.score:.2f} {_escaped(tag.label)}" for tag in certain]
    return "<br>".join([f"<b>{_escaped(names[point.file])}</b>", *lines])


def _introduction(result: SoundMap, model: str) -> str:
    projection = (
        "Distances between groups have no meaning (t-SNE)."
        if result.kept is None
        else f"The map shows {result.kept:.0%} of the variance (two principal components): distant sounds "
        "differ; close ones may still differ in ways not shown."
    )
    return (
        f"{len(result.points):,} sounds, embedded by {_escaped(model)}. Similar sounds are placed "
        f"close together; clusters are k-means of the embeddings. {projection}"
    )


def _lists(result: SoundMap, clusters: Mapping[str, Sequence[MapPoint]], names: Mapping[str, str]) -> str:
    parts = ["<h2>Clusters</h2>"]
    for title, points in clusters.items():
        parts.append(_details(f"{title} ({len(points):,})", (names[point.file] for point in points)))
    parts.append("<h2>Duplicates</h2>" if result.duplicates else "<h2>No duplicates</h2>")
    for group in result.duplicates:
        first = _escaped(names[group.files[0]])
        heading = f"{len(group.files):,} sounds with a similarity of {group.score:.3f} or more: {first}"
        parts.append(_details(heading, (names[file] for file in group.files)))
    if result.failed:
        reasons = (reason.replace(file, names[file]) for file, reason in result.failed.items())
        parts += ["<h2>Skipped</h2>", _details(f"{len(result.failed):,} files", reasons)]
    return "\n".join(parts)


def _details(heading: str, texts: Iterable[str]) -> str:
    items = "".join(f"<li>{_escaped(text)}</li>" for text in texts)
    return f"<details><summary>{heading}</summary><ul>{items}</ul></details>"


def _escaped(text: str) -> str:
    """Return text for HTML and for plotly's labels, on one line."""
    return html.escape(as_text(text))
