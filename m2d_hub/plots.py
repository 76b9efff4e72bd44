"""A picture of one clip: what the model hears, which tags sound when, and how its frames are alike."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m2d_hub.audio.clips import AudioClip, open_audio
from m2d_hub.config import FrontendConfig
from m2d_hub.errors import ConfigError
from m2d_hub.inference import read_windows
from m2d_hub.io import as_text
from m2d_hub.look import (
    LEVELS,
    LIKENESS,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    WIDTH_INCHES,
    dress,
    literal,
    literals,
    new_figure,
    save,
)
from m2d_hub.model import M2D
from m2d_hub.results import Tag
from m2d_hub.windows import Windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANGE_DB = 80.0  # shown below the loudest point
MAX_COLUMNS = 4_000  # of the spectrogram picture; longer ones keep the loudest of neighbours
MOST_TAGS = 6  # shown
MOST_LETTERS = 26  # of a tag's name
MAX_FRAMES = 1_000  # of the similarity picture; longer ones average neighbours
_FRAMES_AT_ONCE = 6_000  # of the spectrogram
_TICKS_HZ = (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)


def plot_clip(
    model: M2D,
    audio: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    sample_rate: int | None = None,
    title: str | None = None,
    batch_size: int = 16,
) -> Figure:
    """Draws a clip's spectrogram over its tags and the likeness of its frames, on one time axis.

    Tags are those of models with a head: the clip's likeliest, a row each, brighter where surer. In the
    likeness, the cosine similarity of frames, bright squares along the diagonal are stretches that sound
    alike to the model; bright spots away from it are repetitions.

    Args:
        model: Gives the spectrogram and the frames.
        audio: One clip, as for :meth:`m2d_hub.M2D.encode_clip`.
        path: Where the picture is saved; its suffix says the format (``.png``, ``.pdf``, …). None: nowhere.
        sample_rate: Hz of an array; None means the model's own.
        title: Heading; None names the file.
        batch_size: Most windows encoded at once.

    Returns:
        The figure, a matplotlib one.

    Raises:
        AudioError: The audio is unreadable, or more than one clip.
        ConfigError: matplotlib is not installed, or does not know the suffix.
    """
    figure, _ = new_figure(WIDTH_INCHES, 9.2 if model.head is None else 10.6, panels=0)
    _check_suffix(figure, path)
    clips = open_audio(audio, model.sample_rate, sample_rate)
    if len(clips) != 1:
        raise ConfigError(f"a picture shows one clip, got {len(clips)}; draw them one by one.")
    log_mel = _log_mel(model, clips[0])
    frames = model.encode_frames(clips, batch_size=batch_size)
    features = frames.features[0][frames.mask[0]]
    first_s, last_s = float(frames.timestamps_s[0]), float(frames.timestamps_s[len(features) - 1])
    span_s = (first_s - model.frame_hop_s / 2, last_s + model.frame_hop_s / 2)

    upper, *middle, lower = _panels(figure, has_tags=model.head is not None)
    _draw_spectrogram(upper, log_mel.float().numpy(), model.config.frontend)
    for axes in middle:
        _draw_tags(axes, *tags_over_time(model, features, MOST_TAGS), span_s)
    _draw_similarity(lower, similarity(features), span_s, model.frame_hop_s)
    figure.suptitle(literal(title or _title(audio, clips[0].name)), y=0.965, fontsize=TITLE_SIZE)
    if path is not None:
        save(figure, path)
    return figure


@torch.no_grad()
def tags_over_time(model: M2D, features: torch.Tensor, most: int) -> tuple[list[Tag], np.ndarray]:
    """The likeliest tags of a clip, and their scores (K, T) in each of its frames (T, N_F·D).

    Raises:
        ConfigError: The model has no head.
    """
    head = model.required_head()
    [tags] = model.classify_embeddings(features.mean(dim=0, keepdim=True), top_k=most)
    scores = head.scores(head.infer(features))  # (T, classes)
    return tags, scores[:, [tag.index for tag in tags]].T.numpy()


def mel_centres_hz(config: FrontendConfig) -> np.ndarray:
    """Centre frequency of each mel band (F,), on Slaney's scale: linear to 1 kHz, logarithmic above."""
    edges = np.linspace(_hz_to_mel(config.f_min_hz), _hz_to_mel(config.f_max_hz), config.n_mels + 2)
    linear = edges * 200 / 3
    return np.where(edges < 15, linear, 1000 * 6.4 ** ((edges - 15) / 27))[1:-1]


def _log_mel(model: M2D, clip: AudioClip) -> torch.Tensor:
    """The log-mel spectrogram (F, T) of a whole clip, before normalisation, on the CPU."""
    parts = read_windows([clip], model.frontend, Windows(_FRAMES_AT_ONCE, patch_frames=1))
    blocks = (model.frontend.log_mel_block(part.samples[None].to(model.device))[0] for part in parts)
    return torch.cat([block.cpu() for block in blocks], dim=-1)


def _hz_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000, 6.4)


def similarity(features: torch.Tensor, others: torch.Tensor | None = None) -> np.ndarray:
    """Cosine similarity (T, T') of frames (T, D) and ``others`` (T', D), by default themselves.

    Of more than MAX_FRAMES, neighbours are averaged.
    """
    rows = _unit_frames(features)
    columns = rows if others is None else _unit_frames(others)
    return (rows @ columns.T).clamp(-1, 1).numpy()


def _unit_frames(features: torch.Tensor) -> torch.Tensor:
    if len(features) > MAX_FRAMES:
        features = torch.nn.functional.adaptive_avg_pool1d(features.T, MAX_FRAMES).T
    return torch.nn.functional.normalize(features.float(), dim=-1)


def spectrogram_db(log_mel: np.ndarray) -> np.ndarray:
    """Levels (F, T) in decibels below the loudest; of more than MAX_COLUMNS, the loudest of neighbours."""
    level_db = log_mel * (10 / math.log(10))
    return _loudest_of_neighbours(level_db - level_db.max(), MAX_COLUMNS)


def frequency_ticks(config: FrontendConfig) -> tuple[list[float], list[str]]:
    """Mel bands, counted from 0, at which ticks stand, and their names in kHz."""
    ticks = [hz for hz in _TICKS_HZ if config.f_min_hz <= hz <= config.f_max_hz]
    bands = np.interp(ticks, mel_centres_hz(config), np.arange(config.n_mels), right=config.n_mels - 0.5)
    return bands.tolist(), [f"{hz / 1000:g}" for hz in ticks]


def _check_suffix(figure: Figure, path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if Path(path).suffix.lower().lstrip(".") not in known:
        raise ConfigError(
            f"picture {os.fspath(path)!r}: the suffix must be one of {', '.join(sorted(known))}."
        )


def _panels(figure: Figure, has_tags: bool) -> list[Axes]:
    """Spectrogram, tags if any, similarity: one below the other on one time axis."""
    grid = figure.add_gridspec(
        2 + has_tags,
        1,
        height_ratios=(1, 0.6, 2.6) if has_tags else (1, 2.6),
        hspace=0.09,
        left=0.25 if has_tags else 0.1,
        right=0.86,
        top=0.94,
        bottom=0.07,
    )
    upper = figure.add_subplot(grid[0])
    panels = [figure.add_subplot(grid[row], sharex=upper) for row in range(1, 2 + has_tags)]
    for axes in (upper, *panels):
        dress(axes, grid=None)
    return [upper, *panels]


def _draw_spectrogram(axes: Axes, log_mel: np.ndarray, config: FrontendConfig) -> None:
    hop_s = config.hop_s
    duration_s = log_mel.shape[1] * hop_s
    level_db = spectrogram_db(log_mel)
    image = axes.imshow(
        level_db,
        origin="lower",
        aspect="auto",
        cmap=LEVELS,
        vmin=-RANGE_DB,
        vmax=0,
        # Frames are centred on their time: the first one, on zero, begins half a hop before.
        extent=(-hop_s / 2, duration_s - hop_s / 2, -0.5, len(level_db) - 0.5),
    )
    axes.set_yticks(*frequency_ticks(config))
    axes.set_facecolor("0.85")  # of the last frame, what is padding
    axes.set_ylabel("frequency, kHz (mel scale)")
    axes.tick_params(labelbottom=False)
    _add_colour_bar(axes, image, "power, dB re loudest")


def _draw_tags(axes: Axes, tags: list[Tag], scores: np.ndarray, span_s: tuple[float, float]) -> None:
    image = axes.imshow(
        scores[::-1],  # the likeliest on top
        origin="lower",
        aspect="auto",
        cmap=LIKENESS,
        interpolation="nearest",
        vmin=0,
        vmax=1,
        extent=(*span_s, -0.5, len(tags) - 0.5),
    )
    axes.set_yticks(range(len(tags)), literals((tag.label for tag in tags[::-1]), MOST_LETTERS))
    axes.tick_params(labelbottom=False)
    _add_colour_bar(axes, image, "score", extend="neither")


def _draw_similarity(
    axes: Axes, similarity: np.ndarray, span_s: tuple[float, float], frame_hop_s: float
) -> None:
    # From the first percentile: a few outliers must not take the colours from the rest.
    least = min(float(np.percentile(similarity, 1)), 0.99)
    image = axes.imshow(
        similarity,
        origin="lower",
        aspect="auto",
        cmap=LIKENESS,
        interpolation="nearest",
        vmin=least,
        vmax=1,
        extent=(*span_s, *span_s),
    )
    axes.set_xlim(*span_s)
    axes.set_xlabel("time, s")
    axes.set_ylabel("time, s")
    _add_colour_bar(axes, image, f"cosine similarity of frames ({frame_hop_s * 1000:g} ms each)")


def _add_colour_bar(axes: Axes, image: Any, label: str, extend: str = "min") -> None:
    place = axes.inset_axes((1.02, 0.0, 0.025, 1.0))
    bar = axes.figure.colorbar(image, cax=place, extend=extend)
    bar.set_label(label, fontsize=TEXT_SIZE)
    place.tick_params(labelsize=SMALL_SIZE)


def _loudest_of_neighbours(level_db: np.ndarray, most: int) -> np.ndarray:
    if level_db.shape[1] <= most:
        return level_db
    starts = np.linspace(0, level_db.shape[1], most, endpoint=False).astype(int)
    return np.maximum.reduceat(level_db, starts, axis=1)


def _title(audio: Any, name: str) -> str:
    return as_text(Path(name).name) if isinstance(audio, (str, os.PathLike)) else name
