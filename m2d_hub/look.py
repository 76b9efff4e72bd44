"""The look that all pictures share: letters to be read at a page's width, colours that all can tell apart."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from m2d_hub.io import as_text, importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid = Literal["both", "x", "y"] | None

WIDTH_INCHES = 8.0
DOTS_PER_INCH = 130  # 1040 dots: a page of 830 shows letters of 10 points as 14 dots
# Okabe and Ito's colours, without black and yellow, which is too bright for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LEVELS = "magma"  # colour maps, all of steadily rising lightness: of power,
LIKENESS = "viridis"  # of similarity and of scores,
SHARES = "Blues"  # and of shares
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12, 10, 9  # points


def new_figure(
    width: float, height: float, panels: int = 1, *, grid: Grid = "both", extra: str = "plots"
) -> tuple[Figure, Any]:
    """A figure with panels one below the other, in the shared look.

    Args:
        width: Inches.
        height: Inches.
        panels: Number of panels; with 0 the caller adds them, and passes each through :func:`dress`.
        grid: As for :func:`dress`.
        extra: Of this package, that brings matplotlib; for the message.

    Returns:
        The figure, and its panel, or an array of several.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib(extra)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if panels else None)
    FigureCanvasAgg(figure)
    if not panels:
        return figure, None
    axes = figure.subplots(panels, 1)
    for one in np.atleast_1d(axes):
        dress(one, grid)
    return figure, axes


def require_matplotlib(extra: str = "plots") -> None:
    """Raises a ConfigError, which names the extra of this package to install, unless matplotlib is there."""
    with importing("matplotlib", "a picture", extra):
        import matplotlib.figure  # noqa: F401


def picture_data(values: np.ndarray, colours: str, low: float, high: float) -> str:
    """Values (rows, columns), the first row at the bottom, as a PNG in a ``data:`` address.

    Args:
        values: Those outside of ``low`` to ``high`` take the colour of the nearer one.
        colours: A colour map's name.
        low: Value of the first colour.
        high: Of the last.
    """
    from matplotlib import colormaps
    from PIL import Image

    shares = (values[::-1].astype(np.float64) - low) / (high - low)
    picture = Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8))
    picture.putpalette(colormaps[colours](np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def dress(axes: Axes, grid: Grid = "both") -> None:
    """Gives a panel the shared colours, letters and, for ``grid`` "x", "y" or "both", lines behind all."""
    axes.set_prop_cycle(color=COLOURS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL_SIZE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(TEXT_SIZE)
    axes.title.set_fontsize(TITLE_SIZE)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.3)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a picture; its folder is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def literal(text: str) -> str:
    """Text of a picture as it stands: no formula between two ``$``, and names that are no text escaped."""
    return "\n".join(map(as_text, text.split("\n"))).replace("$", r"\$")


def literals(texts: Iterable[str], most: int | None = None) -> list[str]:
    """Texts as they stand, of ``most`` letters at most."""
    cut = [text if most is None or len(text) <= most else f"{text[: most - 1]}…" for text in texts]
    return [literal(text) for text in cut]
