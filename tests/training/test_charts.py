"""Charts and intervals of an evaluation with unusual labels and scores."""

from __future__ import annotations

import pytest
import torch
from m2d_training.evaluation import charts
from m2d_training.evaluation.charts import draw_average_precision, draw_confusion, draw_curves
from m2d_training.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    icbhi_score,
    mean_average_precision,
)
from m2d_training.pretraining.analysis import explained_variance_auc

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


@pytest.mark.parametrize(
    ("clips", "right", "low", "high"),
    [(12, True, 0.7354, 1.0), (50, False, 0.0, 0.0711)],  # R: binom.test(12, 12), binom.test(0, 50)
)
def test_interval_has_a_width_if_all_clips_agree(clips, right, low, high):
    targets = torch.nn.functional.one_hot(torch.arange(clips) % 2, 2).float()
    scores = targets if right else 1 - targets
    interval = bootstrap_interval([scores] * 3, targets, accuracy)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("metric", [mean_average_precision, icbhi_score(0)])
def test_interval_of_other_metrics_has_a_lower_end_if_all_clips_are_right(metric):
    targets = torch.nn.functional.one_hot(torch.arange(12) % 2, 2).float()
    interval = bootstrap_interval(targets, targets, metric)
    assert interval.value == interval.high == 1.0 and interval.low == pytest.approx(0.7354, abs=1e-4)


def test_explained_variance_of_one_point_is_one():
    assert explained_variance_auc(torch.ones(6, 4)) == 1.0
