"""Classification metrics with bootstrap confidence intervals.

Shapes: N clips, C classes, R resamples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000
CHUNK = 4_000_000  # counts of clips in resamples held at once
ROUNDING = 1e-9  # difference of rates that are equal except for rounding


@dataclass(frozen=True)
class Metric:
    """A metric from 0 to 1 of scores (N, C) and multi-hot targets (N, C)."""

    name: str
    resampled: Callable[[Tensor, Tensor, Tensor], Tensor]  # with counts of each clip (R, N): (R,)

    def __call__(self, scores: Tensor, targets: Tensor) -> float:
        return float(self.resampled(scores, targets, _each_once(targets)))


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % (95 %: {100 * self.low:.1f}-{100 * self.high:.1f})"


def _each_once(targets: Tensor) -> Tensor:
    return torch.ones(1, len(targets), dtype=torch.float64)


def _accuracy(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    return _rate(counts, _hits(scores, targets))


def _hits(scores: Tensor, targets: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == targets.argmax(dim=1)).double()


def _rate(counts: Tensor, hits: Tensor, among: Tensor | None = None) -> Tensor:
    """Return the share of hits (N,) among some clips, for each resample (R,); NaN if it has none of them."""
    counts = counts.double() if among is None else counts * among.double()
    return counts @ hits / counts.sum(dim=1)


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of each class (C,); NaN for a class without clips."""
    return _precisions(scores, targets, _each_once(targets))[0]


def _precisions(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Return scikit-learn's values for ``sample_weight=counts`` (R, C), sorting the clips only once."""
    sorted_scores, order = scores.T.contiguous().sort(dim=1, descending=True)  # (C, N)
    positive = targets.T.gather(1, order).double()
    positions = torch.arange(order.shape[1])
    tied = torch.nn.functional.pad(sorted_scores[:, 1:] == sorted_scores[:, :-1], (0, 1))
    ends = torch.where(tied, order.shape[1], positions)
    last = ends.flip(1).cummin(dim=1).values.flip(1)  # of equal scores
    values = []
    for count in counts.double():
        weights = count[order]
        hits = weights * positive
        precision = hits.cumsum(dim=1) / weights.cumsum(dim=1).clamp(min=1.0)
        values.append((hits * precision.gather(1, last)).sum(dim=1) / hits.sum(dim=1))
    return torch.stack(values)


def _mean_average_precision(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    present = targets.any(dim=0)
    return _precisions(scores[:, present], targets[:, present], counts).nanmean(dim=1)


accuracy = Metric("accuracy", _accuracy)
mean_average_precision = Metric("mAP", _mean_average_precision)


def _sensitivity_specificity(
    normal: int, scores: Tensor, targets: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    is_normal, hits = targets.argmax(dim=1) == normal, _hits(scores, targets)
    return _rate(counts, hits, ~is_normal), _rate(counts, hits, is_normal)


def sensitivity_specificity(scores: Tensor, targets: Tensor, normal: int) -> tuple[float, float]:
    """Compute the rates of ICBHI 2017 and SPRSound.

    Args:
        scores: (N, C).
        targets: (N, C), one class per clip.
        normal: Index of the normal class.

    Returns:
        Sensitivity, the share of correct predictions among abnormal clips, where only the exact class is
        correct; and specificity, that share among normal clips.
    """
    sensitivity, specificity = _sensitivity_specificity(normal, scores, targets, _each_once(targets))
    return float(sensitivity), float(specificity)


def icbhi_score(normal: int) -> Metric:
    """Return the mean of sensitivity and specificity, see :func:`sensitivity_specificity`."""

    def resampled(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        sensitivity, specificity = _sensitivity_specificity(normal, scores, targets, counts)
        return (sensitivity + specificity) / 2

    return Metric("ICBHI score", resampled)


def bootstrap_interval(
    scores: Tensor | Sequence[Tensor],
    targets: Tensor,
    metric: Metric,
    *,
    folds: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Average a metric over seeds, with its 95 % bootstrap interval over clips and seeds.

    A resample draws as many clips and seeds as exist, with replacement. The interval extends from the 2.5th
    to the 97.5th percentile. If all resamples agree, as they do if all clips are correct, it is that of
    Clopper and Pearson (1934), which always has a width.

    Args:
        scores: (N, C), or one such tensor per seed.
        targets: (N, C) multi-hot.
        metric: Such as :data:`accuracy` or :data:`mean_average_precision`.
        folds: Fold of each clip (N,) in cross-validation: the metric is computed within each and averaged.
        resamples: R.
        seed: Seed of the draws.
    """
    by_seed = [scores] if isinstance(scores, Tensor) else list(scores)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(by_seed), np.full(len(by_seed), 1 / len(by_seed)), size=resamples)
    seed_weights = torch.from_numpy(drawn / len(by_seed))  # (R, S)
    fold_of = torch.zeros(len(targets)) if folds is None else torch.as_tensor(folds)
    points, samples = [], []
    for fold in fold_of.unique():
        inside = fold_of == fold
        fold_scores, fold_targets = [seed_scores[inside] for seed_scores in by_seed], targets[inside]
        points.append(np.mean([metric(seed_scores, fold_targets) for seed_scores in fold_scores]))
        samples.append(_resample(fold_scores, fold_targets, metric, seed_weights, rng))
    values = torch.stack(samples).mean(dim=0)
    value = float(np.mean(points))
    low, high = np.nanpercentile(values.numpy(), [2.5, 97.5])
    if high - low < ROUNDING:
        from scipy.stats import binomtest

        hits = min(round(value * len(targets)), len(targets))
        low, high = binomtest(hits, len(targets)).proportion_ci(method="exact")
    return Interval(value, float(low), float(high))


def _resample(
    scores: list[Tensor], targets: Tensor, metric: Metric, seed_weights: Tensor, rng: np.random.Generator
) -> Tensor:
    """Compute the metric of each resample (R,)."""
    size, values = len(targets), []
    for weights in seed_weights.split(max(1, CHUNK // size)):
        draws = rng.integers(size, size=(len(weights), size))
        counts = torch.from_numpy(np.stack([np.bincount(draw, minlength=size) for draw in draws]))
        by_seed = torch.stack(
            [metric.resampled(seed_scores, targets, counts) for seed_scores in scores]
        )  # (S, r)
        values.append((weights.T * by_seed).sum(dim=0))
    return torch.cat(values)


def over_seeds(values: np.ndarray) -> dict[str, float | None]:
    """Return the mean of the seeds' figures (S,) and half of its 95 % interval by Student's t (Table IV)."""
    from scipy.stats import t

    half = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return {"mean": float(values.mean()), "plus_minus": half}
