"""Parts of the page as HTML that needs nothing from elsewhere: pictures and sounds are inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from m2d_hub.config import FrontendConfig
from m2d_hub.corpus.search import Match
from m2d_hub.demo.listening import MOST_S, Heard, read_beginning
from m2d_hub.errors import AudioError
from m2d_hub.look import LEVELS, LIKENESS, picture_data
from m2d_hub.plots import RANGE_DB, frequency_ticks, similarity, spectrogram_db
from m2d_hub.results import Tag

EXCERPT_S = 10  # of a similar sound, to play


def sound_card(heard: Heard, config: FrontendConfig) -> str:
    """A sound's spectrogram, over its tags in time or the likeness of its moments, under a playhead."""
    return _timed(heard, config, _tag_strips(heard) if heard.tags else _likeness(heard), _note(heard))


def brief_card(heard: Heard, config: FrontendConfig) -> str:
    """A sound's spectrogram under a playhead."""
    return _timed(heard, config, "", "", "m2d-brief")


def _note(heard: Heard) -> str:
    """What the lower pictures of a sound's card show."""
    note = (
        "Scores are the model's, 0 to 1; each strip shows when a tag is heard, the brighter the surer."
        if heard.tags
        else "This model has no tags (no classification head), so the lower picture shows what it has: each "
        "row and each column is a moment of the sound, bright where the two sound alike to the model. Bright "
        "squares on the diagonal are stretches that stay alike, bright spots away from it are repetitions."
    )
    cut = f" Only the first {MOST_S} s are shown." if heard.is_cut else ""
    return f'<p class="m2d-note">{note}{cut}</p>'


def _timed(heard: Heard, config: FrontendConfig, below: str, note: str, kind: str = "") -> str:
    return (
        f'<section class="m2d-sound {kind}" data-seconds="{heard.duration_s:.4f}">'
        f"<h3>{html.escape(heard.name)}</h3>"
        f'<div class="m2d-timed">{_spectrogram(heard, config)}{below}<div class="m2d-playhead"></div></div>'
        f"{_axis(heard.duration_s)}{player(heard.waveform, heard.sample_rate, heard.name)}"
        f"{note}</section>"
    )


def match_list(matches: Sequence[Match], paths: dict[str, Path], sample_rate: int, folder: Path) -> str:
    """Similar sounds, the best first, each to play."""
    rows = []
    for match in matches:
        try:
            waveform = read_beginning(paths[match.file], sample_rate, EXCERPT_S)
        except AudioError as error:
            rows.append(f"<li>{error_card(str(error))}</li>")
            continue
        name = _relative(paths[match.file], folder)
        rows.append(f"<li>{_scored(name, match.score)}{player(waveform, sample_rate, name)}</li>")
    heading = f"<h3>Most similar in {html.escape(folder.name or str(folder))}</h3>"
    note = '<p class="m2d-note">Cosine similarity of embeddings: 1 is the same. Excerpts of 10 s.</p>'
    return f'{heading}<ul class="m2d-list">{"".join(rows)}</ul>{note}'


def tag_list(tags: Sequence[Tag]) -> str:
    """Tags with their scores as bars."""
    rows = [
        f"<li>{_scored(tag.label, tag.score)}"
        f'<div class="m2d-bar" style="width:{100 * tag.score:.1f}%"></div></li>'
        for tag in tags
    ]
    return f'<ul class="m2d-list">{"".join(rows)}</ul>'


def comparison(one: Heard, other: Heard) -> str:
    """How similar two sounds are as a whole, and each moment of one to each of the other."""
    clips = torch.stack([one.frames.mean(dim=0), other.frames.mean(dim=0)])
    score = float(torch.nn.functional.cosine_similarity(clips[:1], clips[1:])[0])
    picture = _picture(similarity(other.frames, one.frames), LIKENESS, "m2d-square", "similarity over time")
    return (
        f'<p><span class="m2d-big">{score:.3f}</span> cosine similarity of the two sounds as a whole</p>'
        f"{picture}{_axis(one.duration_s)}"
        f'<p class="m2d-note">Time of {html.escape(one.name)} runs to the right, of '
        f"{html.escape(other.name)} upwards; bright where the two moments sound alike to the model. 1 is the "
        "same; how high others come depends on the model, so compare pairs with pairs.</p>"
    )


def error_card(message: str) -> str:
    """A sentence that says what went wrong."""
    return f'<div class="m2d-error" role="alert">{html.escape(message)}</div>'


def player(waveform: torch.Tensor, sample_rate: int, name: str) -> str:
    """A sound (S,) to play, inside the page."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.clamp(-1, 1).numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    label = html.escape(f"Play {name}", quote=True)
    source = f"data:audio/flac;base64,{data}"
    return f'<audio controls preload="metadata" aria-label="{label}" src="{source}"></audio>'


def _spectrogram(heard: Heard, config: FrontendConfig) -> str:
    level_db = spectrogram_db(heard.log_mel)
    picture = _picture(level_db, LEVELS, "m2d-spectrogram", "spectrogram", limits=(-RANGE_DB, 0))
    bands, names = frequency_ticks(config)
    labels = "".join(
        f'<span class="m2d-hz" style="top:{100 - 100 * (band + 0.5) / len(level_db):.1f}%">{name}k</span>'
        for band, name in zip(bands, names, strict=True)
        if len(level_db) * 0.08 < band < len(level_db) * 0.95
    )
    return f'<div class="m2d-band">{picture}{labels}</div>'


def _tag_strips(heard: Heard) -> str:
    strips = []
    for tag, scores in zip(heard.tags, heard.tag_scores, strict=True):
        strips.append(_scored(tag.label, tag.score))
        label = f"{tag.label} over time"
        strips.append(_picture(scores[None], LIKENESS, "m2d-strip", label, heard.frames_span, (0, 1)))
    return "".join(strips)


def _likeness(heard: Heard) -> str:
    return _picture(
        similarity(heard.frames), LIKENESS, "m2d-square", "likeness of moments", heard.frames_span
    )


def _picture(
    values: np.ndarray,
    colours: str,
    kind: str,
    label: str,
    width: float = 1,
    limits: tuple[float, float] | None = None,
) -> str:
    """Values (rows, columns), the first row at the bottom, as a PNG that is ``width`` times the page's."""
    # From the first percentile: a few outliers must not take the colours from the rest.
    low, high = limits or (min(float(np.percentile(values, 1)), 0.99), 1.0)
    source = picture_data(values, colours, low, high)
    size = f'class="m2d-picture {kind}" style="width:{100 * width:.2f}%"'
    return f'<img {size} alt="{html.escape(label, quote=True)}" src="{source}">'


def _axis(duration_s: float) -> str:
    marks = "".join(f"<span>{duration_s * part / 4:.2f} s</span>" for part in range(5))
    return f'<div class="m2d-axis">{marks}</div>'


def _scored(name: str, score: float) -> str:
    return f'<div class="m2d-line"><span>{html.escape(name)}</span><span>{score:.3f}</span></div>'


def _relative(path: Path, folder: Path) -> str:
    root = folder.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
