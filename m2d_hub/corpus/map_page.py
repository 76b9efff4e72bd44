"""The HTML page of a map: a plotly plot and lists, in one file that loads nothing."""

from __future__ import annotations

import base64
import html
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from m2d_hub.corpus.sound_map import MapPoint, SoundMap
from m2d_hub.io import as_text
from m2d_hub.plots import COLOURS

EXCERPT_SECONDS = 10  # of a sound, in its spectrogram
_MIN_TAG_SCORE = 0.3  # mean score of a tag that names a cluster
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
#spectrogram {{ width: 288px; height: 120px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{introduction}</p>
{plot}
<p><img id="spectrogram" alt="Spectrogram of the sound under the pointer" hidden></p>
{lists}
</body>
</html>
"""
_SHOW_IMAGE = """
const image = document.getElementById("spectrogram");
document.getElementById("map").on("plotly_hover", (event) => {
  const data = event.points[0].customdata;
  image.hidden = !data;
  if (data) image.src = "data:image/jpeg;base64," + data;
});
"""


def map_page(result: SoundMap, title: str, model: str, images: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Args:
        result: The map.
        title: Title of the page.
        model: Name of the model.
        images: JPEG spectrograms of some of the files, by name.
    """
    names = _names([*(point.file for point in result.points), *result.failed])
    plot = _figure(result, names, images).to_html(
        full_html=False,
        div_id="map",
        include_plotlyjs=True,
        post_script=_SHOW_IMAGE,
        config={"displaylogo": False, "responsive": True, "scrollZoom": True},
    )
    return _PAGE.format(
        title=_escaped(title),
        introduction=_introduction(result, model, len(images)),
        plot=plot,
        lists=_lists(result, names),
    )


def _names(files: Sequence[str]) -> dict[str, str]:
    """Return the name of each file relative to their common folder."""
    folders = {os.path.dirname(file) for file in files}
    is_mixed = len({os.path.isabs(folder) for folder in folders}) > 1
    common = "" if is_mixed else os.path.commonpath(folders)
    return {file: as_text(os.path.relpath(file, common) if common else file) for file in files}


def _figure(result: SoundMap, names: Mapping[str, str], images: Mapping[str, bytes]) -> Any:
    import plotly.graph_objects as go

    scatter = go.Scatter if len(result.points) <= _MAX_SVG_POINTS else go.Scattergl
    num_copies = {file: len(group.files) - 1 for group in result.duplicates for file in group.files}
    figure = go.Figure()
    for number in range(1, result.num_clusters + 1):
        points = [point for point in result.points if point.cluster == number]
        trace = scatter(
            x=[point.x for point in points],
            y=[point.y for point in points],
            mode="markers",
            marker={
                "color": COLOURS[(number - 1) % len(COLOURS)],
                "symbol": _SYMBOLS[(number - 1) % len(_SYMBOLS)],
                "size": 9 if len(result.points) <= 500 else 6,
            },
            name=f"{number}{_common_tag(points)}",
            text=[_hover_text(point, names, num_copies.get(point.file, 0)) for point in points],
            customdata=[base64.b64encode(images.get(point.file, b"")).decode() for point in points],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_trace(trace)
    figure.update_layout(
        template="plotly_white", height=600, dragmode="pan", legend_title_text="Cluster", showlegend=True
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def _hover_text(point: MapPoint, names: Mapping[str, str], num_copies: int) -> str:
    lines = [f"<b>{_escaped(names[point.file])}</b>"]
    lines += [f"{tag.score:.2f} {_escaped(tag.label)}" for tag in point.tags]
    if num_copies:
        lines.append(f"Nearly equal to {_counted(num_copies, 'other sound')}")
    return "<br>".join(lines)


def _introduction(result: SoundMap, model: str, num_images: int) -> str:
    projection = (
        "Distances between groups have no meaning (t-SNE)."
        if result.kept is None
        else f"The map shows {result.kept:.0%} of the variance (two principal components): distant sounds "
        "differ; close ones may still differ in ways not shown."
    )
    return (
        f"{_counted(len(result.points), 'sound')}, embedded by {_escaped(model)}. Similar sounds are placed "
        f"close together; clusters are k-means of the embeddings. {projection} Spectrograms show the first "
        f"{EXCERPT_SECONDS} s of {num_images:,} sounds."
    )


def _common_tag(points: Sequence[MapPoint]) -> str:
    """Return the tag that a cluster's sounds have in common, as ``: label``, or nothing."""
    totals: Counter[str] = Counter()
    for point in points:
        totals.update({tag.label: tag.score for tag in point.tags})
    for label, total in totals.most_common(1):
        if total >= _MIN_TAG_SCORE * len(points):
            return f": {_escaped(label)}"
    return ""


def _lists(result: SoundMap, names: Mapping[str, str]) -> str:
    parts = [f"<h2>{_counted(result.num_clusters, 'cluster')}</h2>"]
    for number in range(1, result.num_clusters + 1):
        points = [point for point in result.points if point.cluster == number]
        heading = f"Cluster {number}{_common_tag(points)} ({_counted(len(points), 'sound')})"
        parts.append(_details(heading, (names[point.file] for point in points)))
    parts.append("<h2>Duplicates</h2>" if result.duplicates else "<h2>No duplicates</h2>")
    for group in result.duplicates:
        first = _escaped(names[group.files[0]])
        heading = f"{len(group.files):,} sounds with a similarity of {group.score:.3f} or more: {first}"
        parts.append(_details(heading, (names[file] for file in group.files)))
    if result.failed:
        reasons = (reason.replace(file, names[file]) for file, reason in result.failed.items())
        parts += ["<h2>Skipped</h2>", _details(_counted(len(result.failed), "file"), reasons)]
    return "\n".join(parts)


def _details(heading: str, texts: Iterable[str]) -> str:
    items = "".join(f"<li>{_escaped(text)}</li>" for text in texts)
    return f"<details><summary>{heading}</summary><ul>{items}</ul></details>"


def _escaped(text: str) -> str:
    """Return text for HTML and for plotly's labels, on one line."""
    return html.escape(as_text(text))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
