"""Plots of one clip (spectrogram, tag scores, frame similarity), and the matplotlib style of all plots."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from nnAudio.librosa_functions import mel_frequencies

from m2d_hub.audio.clips import AudioClip, open_audio
from m2d_hub.config import FrontendConfig
from m2d_hub.errors import ConfigError
from m2d_hub.inference import read_windows
from m2d_hub.io import as_text, require_extra
from m2d_hub.model import M2D
from m2d_hub.results import Frames, Tag
from m2d_hub.windows import Windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid = Literal["both", "x", "y"] | None

WIDTH_INCHES = 8.0
SMALL_SIZE = 9  # points
# Okabe and Ito's colours, which are distinguishable with all kinds of colour vision. Without black, and
# without yellow, which is too bright for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Colour maps of steadily rising or falling lightness.
POWER_COLOURS, SCORE_COLOURS, SHARE_COLOURS = "magma", "viridis", "Blues"
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "grid.alpha": 0.3,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
}
RANGE_DB = 80.0  # shown below the loudest point
MAX_FRAMES = 1_000  # of a similarity plot; longer ones average neighbouring frames
MAX_TAGS = 6
MIN_CERTAIN_SCORE = 0.3  # of a tag that a page shows, or that names a cluster
MAX_LABEL_LENGTH = 26  # characters of a tag's name
_DOTS_PER_INCH = 130  # a plot scaled to a page of 830 pixels shows 10-point text 14 pixels high
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
    """Plot a clip's spectrogram, tag scores and frame similarity on one time axis.

    Tags are plotted for models with a head: a row for each of the clip's most likely tags, brighter for
    higher scores. In the similarity plot (cosine similarity of frames), bright squares along the diagonal
    are sections of similar sound, and bright spots away from it are repetitions.

    Args:
        model: Model that provides the spectrogram and the frames.
        audio: One clip, as for :meth:`m2d_hub.M2D.encode_clip`.
        path: File to save the plot to; its suffix sets the format (``.png``, ``.pdf``, …). None: not saved.
        sample_rate: Sample rate of an array in Hz; None means the model's.
        title: Title of the plot; None for the name of the file.
        batch_size: Maximum number of windows encoded at once.

    Returns:
        The matplotlib figure.

    Raises:
        AudioError: The audio is unreadable.
        ConfigError: ``audio`` is more than one clip, matplotlib is not installed, or the suffix of ``path``
            is not supported.
    """
    require_extra("plots", "a plot")
    clips = open_audio(audio, model.sample_rate, sample_rate)
    if len(clips) != 1:
        raise ConfigError(f"A plot shows one clip, got {len(clips)}; plot them one by one.")
    log_mel = _log_mel(model, clips[0])
    frames = model.encode_frames(clips, batch_size=batch_size)
    name = as_text(Path(clips[0].name).name) if isinstance(audio, (str, os.PathLike)) else clips[0].name
    figure = draw_clip(model, log_mel, frames, title or name)
    if path is not None:
        save(figure, path)
    return figure


def draw_clip(model: M2D, log_mel: torch.Tensor, frames: Frames, title: str) -> Figure:
    """Plot a clip that is already encoded, as :func:`plot_clip` does.

    Args:
        model: Model of the frames.
        log_mel: Log-mel spectrogram (F, T), before normalisation.
        frames: The clip's frames, (1, T, D).
        title: Title of the plot.
    """
    features = frames.features[0][frames.mask[0]]
    times = frames.timestamps_s[: len(features)]
    half_s = model.frame_hop_s / 2
    span_s = (float(times[0]) - half_s, float(times[-1]) + half_s)
    ratios = (1, 2.6) if model.head is None else (1, 0.6, 2.6)
    figure, (upper, *middle, lower) = new_figure(
        WIDTH_INCHES, 2.55 * sum(ratios), len(ratios), grid=None, sharex=True, height_ratios=ratios
    )
    _draw_spectrogram(upper, spectrogram_db(log_mel.float().numpy()), log_mel.shape[1], model.config.frontend)
    for axes in middle:
        _draw_tags(axes, *tags_over_time(model, features), span_s)
    label = f"cosine similarity of frames ({model.frame_hop_s * 1000:g} ms each)"
    _draw_similarity(lower, similarity(features, features), (*span_s, *span_s), label)
    lower.set(xlabel="time, s", ylabel="time, s", xlim=span_s)
    figure.suptitle(literal(title))
    return figure


def draw_cross_similarity(
    one: torch.Tensor, other: torch.Tensor, names: tuple[str, str], frame_hop_s: float
) -> Figure:
    """Plot the cosine similarity of the frames (T, D) of one clip to those (T', D) of another."""
    figure, axes = new_figure(WIDTH_INCHES, 6.0, grid=None)
    extent = (0.0, len(one) * frame_hop_s, 0.0, len(other) * frame_hop_s)
    _draw_similarity(axes, similarity(other, one), extent, "cosine similarity of frames")
    axes.set(xlabel=f"time in {literal(names[0])}, s", ylabel=f"time in {literal(names[1])}, s")
    return figure


@torch.no_grad()
def tags_over_time(model: M2D, features: torch.Tensor) -> tuple[list[Tag], np.ndarray]:
    """Return the most likely tags of a clip and their scores (K, T) in each of its frames (T, N_F·D).

    Raises:
        ConfigError: The model has no head.
    """
    head = model.required_head()
    [tags] = model.classify_embeddings(features.mean(dim=0, keepdim=True), top_k=MAX_TAGS)
    scores = head.scores(head.infer(features))  # (T, classes)
    return tags, scores[:, [tag.index for tag in tags]].T.numpy()


def similarity(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Return the cosine similarity (T, T') of frames (T, D) and (T', D), averaged beyond MAX_FRAMES."""
    return (_unit_frames(one) @ _unit_frames(other).T).clamp(-1, 1).numpy()


def spectrogram_db(log_mel: np.ndarray) -> np.ndarray:
    """Return levels (F, T) in decibels below the maximum."""
    level_db = log_mel * (10 / math.log(10))
    return level_db - level_db.max()


def new_figure(
    width: float, height: float, panels: int = 1, *, grid: Grid = "both", **subplots: Any
) -> tuple[Figure, Any]:
    """Create a figure in the shared style.

    Args:
        width: Width in inches.
        height: Height in inches.
        panels: Number of panels, one below the other.
        grid: Axis of the grid lines.
        **subplots: Further arguments of ``Figure.subplots``.

    Returns:
        The figure and its axes; an array of axes if there are several.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_extra("plots", "a plot")
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(panels, 1, **subplots)
    for one in np.atleast_1d(axes):
        one.grid(grid is not None, axis=grid or "both")
    return figure, axes


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save a figure; missing folders are created.

    Raises:
        ConfigError: The suffix is not supported.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=_DOTS_PER_INCH)
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)!r} cannot be saved: {error}") from error


def literal(text: str) -> str:
    """Return text that matplotlib draws unchanged: no formula between ``$``, control characters escaped."""
    return "\n".join(map(as_text, text.split("\n"))).replace("$", r"\$")


def _log_mel(model: M2D, clip: AudioClip) -> torch.Tensor:
    """Return the log-mel spectrogram (F, T) of a whole clip, before normalisation, on the CPU."""
    parts = read_windows([clip], model.frontend, Windows(_FRAMES_AT_ONCE, patch_frames=1))
    blocks = (model.frontend.log_mel_block(part.samples[None].to(model.device))[0] for part in parts)
    return torch.cat([block.cpu() for block in blocks], dim=-1)


def _unit_frames(features: torch.Tensor) -> torch.Tensor:
    if len(features) > MAX_FRAMES:
        features = torch.nn.functional.adaptive_avg_pool1d(features.T, MAX_FRAMES).T
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _draw_spectrogram(axes: Axes, level_db: np.ndarray, num_frames: int, config: FrontendConfig) -> None:
    # Frames are centred on their times, so the first one, at zero, begins half a hop before it.
    begin_s = -config.hop_s / 2
    extent = (begin_s, begin_s + num_frames * config.hop_s, -0.5, len(level_db) - 0.5)
    _draw_image(axes, level_db, extent, POWER_COLOURS, (-RANGE_DB, 0), "power, dB re maximum", extend="min")
    ticks = [hz for hz in _TICKS_HZ if config.f_min_hz <= hz <= config.f_max_hz]
    centres = mel_frequencies(config.n_mels + 2, fmin=config.f_min_hz, fmax=config.f_max_hz)[1:-1]
    bands = np.interp(ticks, centres, np.arange(config.n_mels), right=config.n_mels - 0.5)
    axes.set_yticks(bands.tolist(), [f"{hz / 1000:g}" for hz in ticks])
    axes.set_ylabel("frequency, kHz (mel scale)")
    axes.set_facecolor("0.85")  # the padding of the last frame


def _draw_tags(axes: Axes, tags: list[Tag], scores: np.ndarray, span_s: tuple[float, float]) -> None:
    extent = (*span_s, -0.5, len(tags) - 0.5)
    _draw_image(axes, scores[::-1], extent, SCORE_COLOURS, (0, 1), "score")  # the most likely tag on top
    labels = [textwrap.shorten(tag.label, MAX_LABEL_LENGTH, placeholder="…") for tag in tags[::-1]]
    axes.set_yticks(range(len(tags)), map(literal, labels))


def _draw_similarity(
    axes: Axes, values: np.ndarray, extent: tuple[float, float, float, float], label: str
) -> None:
    # From the first percentile, so that a few outliers do not use up most of the colours.
    lowest = min(float(np.percentile(values, 1)), 0.99)
    _draw_image(axes, values, extent, SCORE_COLOURS, (lowest, 1), label, extend="min")


def _draw_image(
    axes: Axes,
    values: np.ndarray,
    extent: tuple[float, float, float, float],
    colours: str,
    limits: tuple[float, float],
    label: str,
    extend: str = "neither",
) -> None:
    """Draw values (rows, columns), the first row at the bottom, with a colour bar."""
    image = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=extent,
        interpolation="nearest" if colours == SCORE_COLOURS else None,
    )
    axes.figure.colorbar(image, ax=axes, label=label, extend=extend, pad=0.02, aspect=30)
