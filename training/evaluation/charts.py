"""Plots of an evaluation: confusion matrix, average precision, learning curves, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from m2d_hub.plots import SHARE_COLOURS, SMALL_SIZE, WIDTH_INCHES, literal, new_figure, save

from .metrics import Interval

MAX_NAMED = 80  # classes whose names fit on a plot
MAX_NUMBERED = 20  # classes of a confusion matrix whose cells show numbers
INCHES_PER_CLASS = 0.22


def draw_confusion(path: Path, confusion: Tensor, labels: Sequence[str], title: str) -> None:
    """Plot a confusion matrix (C, C) of test clips, with a row for each true class."""
    side = min(14.0, max(4.5, 2.5 + INCHES_PER_CLASS * 1.5 * len(labels)))
    figure, axes = new_figure(side + 1.0, side, grid=None)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1e-9)
    image = axes.imshow(shares.numpy(), cmap=SHARE_COLOURS, vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, label="share of the class's test clips", fraction=0.04)
    axes.set(xlabel="predicted", ylabel="true", title=literal(title))
    if len(labels) <= MAX_NAMED:
        names = [literal(label) for label in labels]
        size = SMALL_SIZE if len(labels) <= 40 else 6
        axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(labels)), names, fontsize=size)
    if len(labels) <= MAX_NUMBERED:
        for row, column in confusion.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{float(confusion[row, column]):.1f}".removesuffix(".0")
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL_SIZE)
    save(figure, path)


def draw_average_precision(path: Path, precisions: Tensor, labels: Sequence[str], title: str) -> None:
    """Plot the average precision (C,) of each class, in descending order.

    Classes without test clips (NaN) are not shown; of more than MAX_NAMED only the best and the worst are.
    """
    order = [int(index) for index in precisions.argsort(descending=True) if not precisions[index].isnan()]
    num_hidden = max(0, len(order) - MAX_NAMED)
    if num_hidden:
        order = order[: MAX_NAMED // 2] + order[-MAX_NAMED // 2 :]
        title = f"{title}\n({num_hidden} classes between the best and the worst {MAX_NAMED // 2} not shown)"
    figure, axes = new_figure(WIDTH_INCHES, 1.5 + INCHES_PER_CLASS * len(order), grid="x")
    axes.barh(range(len(order)), precisions[order].numpy(), height=0.7)
    axes.set_yticks(range(len(order)), [literal(labels[index]) for index in order], fontsize=SMALL_SIZE)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, 1), xlabel="average precision", title=literal(title))
    save(figure, path)


def draw_curves(path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Plot values by epoch: for each panel, such as "loss", its lines by name. NaN leaves a gap."""
    figure, panels = new_figure(WIDTH_INCHES, 3.0 * len(curves), len(curves))
    np.atleast_1d(panels)[0].set_title("Learning curves")
    for axes, (panel, lines) in zip(np.atleast_1d(panels), curves.items(), strict=True):
        for name, values in lines.items():
            marker = "." if len(values) < 50 else ""
            axes.plot(range(1, len(values) + 1), values, label=literal(name), marker=marker, linewidth=1)
        axes.set(ylabel=panel, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if panel != "loss":
            _end_at_one(axes)
        if len(lines) <= 12:
            axes.legend(fontsize=SMALL_SIZE)
    save(figure, path)


def draw_steps(path: Path, points: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Plot values by optimizer step: for each panel, by name, its steps and values."""
    figure, panels = new_figure(WIDTH_INCHES, 2.4 * len(points), len(points))
    np.atleast_1d(panels)[0].set_title(path.stem.capitalize())
    for axes, (name, values) in zip(np.atleast_1d(panels), points.items(), strict=True):
        axes.plot(*zip(*values, strict=True), marker="." if len(values) < 100 else "")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    np.atleast_1d(panels)[-1].set_xlabel("optimizer step")
    save(figure, path)


def draw_layers(path: Path, valid: Sequence[float], test: Sequence[Interval], metric: str) -> None:
    """Plot the scores of each layer's features, with 95 % intervals for the test split."""
    figure, axes = new_figure(WIDTH_INCHES, 4.5)
    layers = range(1, len(test) + 1)
    points = np.array([interval.value for interval in test])
    spans = np.array([[interval.value - interval.low, interval.high - interval.value] for interval in test])
    axes.errorbar(layers, points, yerr=spans.T.clip(min=0), marker="o", capsize=3, label="test")
    axes.plot(layers, valid, marker=".", linestyle="--", label="valid")
    axes.set_xticks(layers)
    axes.set(xlabel="layer", ylabel=metric, title="Features of each layer, with 95 % intervals")
    _end_at_one(axes)
    axes.legend(fontsize=SMALL_SIZE)
    save(figure, path)


def draw_points(
    path: Path, values: Sequence[Any], points: Sequence[tuple[float, float]], field: str, metric: str
) -> None:
    """Plot means with their 95 % half intervals over the values of a field, which are numbers or names."""
    figure, axes = new_figure(WIDTH_INCHES, 4.5)
    means, halves = zip(*points, strict=True)
    names = [literal(value) if isinstance(value, str) else value for value in values]
    axes.errorbar(names, means, yerr=halves, marker="o", capsize=3)
    axes.set(xlabel=literal(field), ylabel=metric, title=literal(f"{metric} by {field}, with 95 % intervals"))
    save(figure, path)


def draw_mix(path: Path, weights: Tensor) -> None:
    """Plot the weights (S, L) of the layers in each seed's mix, and their mean."""
    figure, axes = new_figure(WIDTH_INCHES, 4.0, grid="y")
    layers = range(1, weights.shape[1] + 1)
    axes.bar(layers, weights.mean(dim=0).numpy(), alpha=0.6)
    for mixture in weights:
        axes.plot(layers, mixture.numpy(), marker=".", linestyle="", color="black")
    axes.set_xticks(layers)
    axes.set(xlabel="layer", ylabel="weight in the mix", title="Weights of the layers; dots are seeds")
    save(figure, path)


def _end_at_one(axes: Any) -> None:
    """Limit an axis of accuracies or precisions to 1."""
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
