"""The page that shows a map of sounds: one HTML file, which loads nothing and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2d_hub.corpus.sound_map import MapPoint, SoundMap
from m2d_hub.look import COLOURS

_HERE = Path(__file__).parent
_WIDTH, _HEIGHT, _MARGIN = 800, 600, 36  # units of the picture
_LEAST_SCORE = 0.3  # on average, of the tag that a cluster is called by
EXCERPT_S = 10  # of a sound, in its picture
_MANY = 500  # sounds; of more, marks are smaller
# Circle, square, triangle, diamond, triangle on its tip: with the colours a mark of its own for 30 clusters.
_SHAPES = (
    "M-7,0a7,7 0 1,0 14,0a7,7 0 1,0 -14,0z",
    "M-6.2,-6.2h12.4v12.4h-12.4z",
    "M0,-8.5l8,14.5h-16z",
    "M0,-9l8,9l-8,9l-8,-9z",
    "M0,8.5l8,-14.5h-16z",
)


@dataclass(frozen=True)
class Heading:
    """What the page says that it shows."""

    source: str  # name of the folder or of the embeddings
    model: str


def page_of(result: SoundMap, heading: Heading, pictures: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        result: What it shows.
        heading: What it calls it.
        pictures: Spectrograms of some or all of the files, as ``data:`` addresses.
    """
    style, script = ((_HERE / f"map_page.{suffix}").read_text("utf-8") for suffix in ("css", "js"))
    names = _names([*(point.file for point in result.points), *result.failed])
    places = _places(result)
    title = html.escape(f"Map of {heading.source}")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n{_introduction(result, heading)}\n"
        f'<main>\n<div class="frame">{_picture(result, places)}{_BUTTONS}</div>\n'
        '<div id="shown" aria-live="polite">Point at a sound, or choose one from the lists below.</div>\n'
        f"</main>\n{_clusters(result, names)}{_duplicates(result, names)}{_left_out(result, names)}"
        f'<p class="small">{_remark(result, pictures)}</p>\n'
        f'<script type="application/json" id="sounds">{_data(result, places, names, pictures)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


_BUTTONS = (
    '<div class="zoom"><button id="nearer" type="button" aria-label="Nearer">+</button>'
    '<button id="farther" type="button" aria-label="Farther">−</button>'
    '<button id="whole" type="button" aria-label="The whole map">⤢</button></div>'
)


def _digest(text: str) -> str:
    """How a content security policy names a script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}"


def _names(files: Sequence[str]) -> dict[str, str]:
    """Each file's name below the folder that all have in common."""
    folders = {os.path.dirname(file) for file in files}
    is_mixed = len({os.path.isabs(folder) for folder in folders}) > 1
    common = "" if is_mixed else os.path.commonpath(folders)
    return {file: os.path.relpath(file, common) if common else file for file in files}


def _introduction(result: SoundMap, heading: Heading) -> str:
    kept = (
        f"The map shows {result.kept:.0%} of how they differ (two principal components): what is far apart "
        "differs, what is close may differ otherwise."
        if result.kept is not None
        else "The map (t-SNE) keeps neighbours together; distances between groups mean nothing."
    )
    return (
        f"<p>{_counted(len(result.points), 'sound')}, as <code>{html.escape(heading.model)}</code> hears "
        f"them: near each other, and of one cluster, are those that are alike to it. {kept}</p>"
    )


def _remark(result: SoundMap, pictures: Mapping[str, str]) -> str:
    number = len(result.points)
    told = f"{len(pictures):,} of {number:,} sounds have" if len(pictures) < number else "All sounds have"
    made = "Clusters are k-means of the embeddings. Made by m2d_hub."
    return f"{told} a spectrogram, of their first {EXCERPT_S} s. {made}"


def _picture(result: SoundMap, places: np.ndarray) -> str:
    size = f" scale({min(1.0, (_MANY / len(places)) ** 0.25):.2f})"
    marks = "".join(
        f'<g class="sound" {_at(place, size)}>{_mark(point.cluster)}</g>'
        for point, place in zip(result.points, places, strict=True)
    )
    numbers = "".join(
        f'<g {_at(place)}><text class="number" y="-18">{cluster}</text></g>'
        for cluster, place in _centres(result, places)
    )
    label = f"Map of {len(places)} sounds in {result.num_clusters} clusters; the lists below name them all"
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg id="map" {box} role="img" aria-label="{label}">{marks}{numbers}</svg>'


def _at(place: np.ndarray, more: str = "") -> str:
    return f'transform="translate({place[0]:.1f} {place[1]:.1f}){more}"'


def _mark(cluster: int) -> str:
    colour, shape = COLOURS[(cluster - 1) % len(COLOURS)], _SHAPES[(cluster - 1) % len(_SHAPES)]
    return f'<path class="mark" fill="{colour}" d="{shape}"/>'


def _places(result: SoundMap) -> np.ndarray:
    """Places (N, 2) in the picture, upwards where y is larger; one scale for both axes."""
    places = np.array([(point.x, -point.y) for point in result.points])
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    scale = (room / np.maximum(high - low, 1e-9)).min()
    return (places - (low + high) / 2) * scale + np.array([_WIDTH, _HEIGHT]) / 2


def _centres(result: SoundMap, places: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Each cluster, and the place of its middlemost sound."""
    labels = np.array([point.cluster for point in result.points])
    if result.num_clusters > 1:
        for cluster in range(1, result.num_clusters + 1):
            members = places[labels == cluster]
            away = np.linalg.norm(members - np.median(members, axis=0), axis=1)
            yield cluster, members[away.argmin()]


def _clusters(result: SoundMap, names: Mapping[str, str]) -> str:
    parts = [f"<h2>{_counted(result.num_clusters, 'cluster')}</h2>\n"]
    for cluster in range(1, result.num_clusters + 1):
        members = [index for index, point in enumerate(result.points) if point.cluster == cluster]
        heard = _heard([result.points[index] for index in members])
        key = f'<svg class="key" viewBox="-10 -10 20 20" aria-hidden="true">{_mark(cluster)}</svg>'
        summary = f"{key}Cluster {cluster}: {_counted(len(members), 'sound')}{heard}"
        parts.append(_details(summary, _buttons(result, names, members), f' data-cluster="{cluster}"'))
    return "".join(parts)


def _heard(points: Sequence[MapPoint]) -> str:
    """The tag that sounds have in common, if there is one."""
    totals: defaultdict[str, float] = defaultdict(float)
    for tag in (tag for point in points for tag in point.tags):
        totals[tag.label] += tag.score
    label = max(totals, key=totals.__getitem__, default="")
    return f", mostly {html.escape(label)}" if totals[label] >= _LEAST_SCORE * len(points) else ""


def _duplicates(result: SoundMap, names: Mapping[str, str]) -> str:
    rows = {point.file: index for index, point in enumerate(result.points)}
    parts = ["<h2>Duplicates</h2>\n"]
    if not result.duplicates:
        parts.append("<p>None: no two sounds are nearly the same.</p>\n")
    for group in result.duplicates:
        name = html.escape(names[group.files[0]])
        summary = f"{len(group.files):,} nearly the same (similarity {group.score:.3f}): {name}"
        parts.append(_details(summary, _buttons(result, names, [rows[file] for file in group.files])))
    return "".join(parts)


def _buttons(result: SoundMap, names: Mapping[str, str], members: Iterable[int]) -> str:
    buttons = "".join(
        f'<li><button type="button" data-sound="{index}"><span>'
        f"{html.escape(names[result.points[index].file])}</span></button></li>"
        for index in members
    )
    return f'<ul class="sounds">{buttons}</ul>'


def _details(summary: str, content: str, attributes: str = "") -> str:
    return f"<details{attributes}><summary>{summary}</summary>{content}</details>\n"


def _left_out(result: SoundMap, names: Mapping[str, str]) -> str:
    if not result.failed:
        return ""
    told = (why.replace(file, names[file]) for file, why in result.failed.items())
    rows = "".join(f"<li>{html.escape(why)}</li>" for why in told)
    return f"<h2>Left out</h2>\n<ul>{rows}</ul>\n"


def _data(result: SoundMap, places: np.ndarray, names: Mapping[str, str], pictures: Mapping[str, str]) -> str:
    """What the script shows, as JSON that ends no element."""
    twins = {file: len(group.files) - 1 for group in result.duplicates for file in group.files}
    sounds = [
        {
            "name": names[point.file],
            "x": round(float(x), 1),
            "y": round(float(y), 1),
            "cluster": point.cluster,
            "tags": [(tag.label, round(tag.score, 3)) for tag in point.tags],
            "twins": twins.get(point.file, 0),
            "picture": pictures.get(point.file),
        }
        for point, (x, y) in zip(result.points, places, strict=True)
    ]
    return json.dumps(sounds, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
