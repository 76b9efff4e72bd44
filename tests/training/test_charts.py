"""Charts and intervals of an evaluation with unusual labels and scores."""

from __future__ import annotations

import torch
from m2d_training.evaluation import charts
from m2d_training.evaluation.charts import draw_average_precision, draw_confusion, draw_curves

from m2d_hub.plots import COLOURS, new_figure

LABELS = ["cash ($)", "coin ($$)", r"$\frac{$", "100 % _^{"]


def test_labels_with_formula_characters_are_drawn(tmp_path):
    title = "$ of $\\nothing$"
    draw_confusion(tmp_path / "confusion.png", torch.eye(4), LABELS, title)
    draw_average_precision(tmp_path / "precision.png", torch.rand(4), LABELS, title)
    draw_curves(tmp_path / "curves.png", {"loss": {label: [1.0, 0.5] for label in LABELS}})
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_curves_have_the_shared_style_and_integer_epochs(tmp_path, monkeypatch):
    figures = []

    def recorded(*arguments, **options):
        figures.append(new_figure(*arguments, **options))
        return figures[-1]

    monkeypatch.setattr(charts, "new_figure", recorded)
    draw_curves(tmp_path / "curves.png", {"loss": {"train": [3.0, 2.0, 1.5], "valid": [3.0, 2.5, 2.4]}})
    [(_, axes)] = figures
    assert [line.get_color() for line in axes.lines] == list(COLOURS[:2])
    assert axes.get_title() and (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss")
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
