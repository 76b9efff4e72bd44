"""How well classes are told apart, and how sure that figure is.

Shapes: N clips, C classes, R resamples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import ConfigError

RESAMPLES = 1000
CHUNK = 4_000_000  # counts of clips in resamples held at once


@dataclass(frozen=True)
class Metric:
    """A figure from 0 to 1 of scores (N, C), the larger the surer, and multi-hot targets (N, C)."""

    name: str
    point: Callable[[Tensor, Tensor], float]
    resampled: Callable[[Tensor, Tensor, Tensor], Tensor]  # with counts of each clip (R, N): (R,)

    def __call__(self, scores: Tensor, targets: Tensor) -> float:
        return self.point(scores, targets)


@dataclass(frozen=True)
class Interval:
    """A figure with the interval that holds it with a probability of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % (95 %: {100 * self.low:.1f}-{100 * self.high:.1f})"


@dataclass(frozen=True)
class SensitivitySpecificity:
    """Rates of right answers on abnormal and on normal clips."""

    sensitivity: float
    specificity: float

    @property
    def score(self) -> float:
        """Their mean, the ICBHI 2017 score."""
        return (self.sensitivity + self.specificity) / 2


def _accuracy(scores: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(targets.argmax(dim=1).numpy(), scores.argmax(dim=1).numpy()))


def _resampled_accuracy(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    return _rate(counts, _hits(scores, targets))


def _hits(scores: Tensor, targets: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == targets.argmax(dim=1)).double()


def _rate(counts: Tensor, hits: Tensor, among: Tensor | None = None) -> Tensor:
    """Share of hits (N,) among some of the clips, of each resample (R,); NaN where it has none of them."""
    counts = counts.double() if among is None else counts * among.double()
    return counts @ hits / counts.sum(dim=1)


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each class (C,); NaN for a class that no clip has."""
    from sklearn.metrics import average_precision_score

    present = targets.any(dim=0)
    values = torch.full((targets.shape[1],), torch.nan, dtype=torch.float64)
    if present.any():
        found = average_precision_score(targets[:, present].numpy(), scores[:, present].numpy(), average=None)
        values[present] = torch.from_numpy(np.atleast_1d(found))
    return values


def _mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    return float(average_precisions(scores, targets).nanmean())


def _resampled_average_precision(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Scikit-learn's value for ``sample_weight=counts``, with the clips sorted once for all resamples."""
    present = targets.any(dim=0)
    sorted_scores, order = scores[:, present].T.contiguous().sort(dim=1, descending=True)  # (C, N)
    positive = targets[:, present].T.gather(1, order).double()
    places = torch.arange(order.shape[1])
    tied = torch.nn.functional.pad(sorted_scores[:, 1:] == sorted_scores[:, :-1], (0, 1))
    last = torch.where(tied, order.shape[1], places).flip(1).cummin(dim=1).values.flip(1)  # of equal scores
    values = []
    for count in counts.double():
        weights = count[order]
        hits = weights * positive
        precision = hits.cumsum(dim=1) / weights.cumsum(dim=1).clamp(min=1.0)
        values.append(((hits * precision.gather(1, last)).sum(dim=1) / hits.sum(dim=1)).nanmean())
    return torch.stack(values)


accuracy = Metric("accuracy", _accuracy, _resampled_accuracy)
mean_average_precision = Metric("mAP", _mean_average_precision, _resampled_average_precision)


def sensitivity_specificity(scores: Tensor, targets: Tensor, normal: int) -> SensitivitySpecificity:
    """Rates as ICBHI 2017 and SPRSound count them.

    Args:
        scores: (N, C).
        targets: (N, C), one class a clip.
        normal: Index of the normal class. Specificity is the share of right answers among its clips;
            sensitivity among all others, where only a clip's very class is right.
    """
    is_normal = targets.argmax(dim=1) == normal
    every = torch.ones(1, len(targets), dtype=torch.float64)
    hits = _hits(scores, targets)
    return SensitivitySpecificity(float(_rate(every, hits, ~is_normal)), float(_rate(every, hits, is_normal)))


def icbhi_score(normal: int) -> Metric:
    """Mean of sensitivity and specificity, see :func:`sensitivity_specificity`."""

    def point(scores: Tensor, targets: Tensor) -> float:
        return sensitivity_specificity(scores, targets, normal).score

    def resampled(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        is_normal, hits = targets.argmax(dim=1) == normal, _hits(scores, targets)
        return (_rate(counts, hits, ~is_normal) + _rate(counts, hits, is_normal)) / 2

    return Metric("ICBHI score", point, resampled)


def bootstrap_interval(
    scores: Tensor | Sequence[Tensor],
    targets: Tensor,
    metric: Metric,
    *,
    rounds: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of a metric over seeds, with its 95 % bootstrap interval over clips and seeds.

    A resample draws as many clips and as many seeds as there are, with replacement; the interval goes from
    its 2.5th to its 97.5th percentile. Where all resamples agree, it is that of :func:`clopper_pearson`.

    Args:
        scores: (N, C), or one such tensor for each seed.
        targets: (N, C) multi-hot.
        metric: Such as :data:`accuracy` or :data:`mean_average_precision`.
        rounds: Cross-validation's round of each clip (N,): the metric is computed within each and averaged.
        resamples: R.
        seed: Of the draws.

    Raises:
        ConfigError: The shapes do not belong together.
    """
    by_seed = [scores] if isinstance(scores, Tensor) else list(scores)
    for own in by_seed:
        if own.shape != targets.shape:
            raise ConfigError(f"scores are {tuple(own.shape)} but targets are {tuple(targets.shape)}.")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(by_seed), np.full(len(by_seed), 1 / len(by_seed)), size=resamples)
    seed_weights = torch.from_numpy(drawn / len(by_seed))  # (R, S)
    members = torch.zeros(len(targets)) if rounds is None else torch.as_tensor(rounds)
    points, samples = [], []
    for name in members.unique():
        inside = members == name
        own_scores, own_targets = [own[inside] for own in by_seed], targets[inside]
        points.append(np.mean([metric(own, own_targets) for own in own_scores]))
        samples.append(_resample(own_scores, own_targets, metric, seed_weights, rng))
    values = torch.stack(samples).mean(dim=0)
    value = float(np.mean(points))
    low, high = np.nanpercentile(values.numpy(), [2.5, 97.5])
    if low == high:
        low, high = clopper_pearson(value, len(targets))
    return Interval(value, float(low), float(high))


def clopper_pearson(rate: float, count: int) -> tuple[float, float]:
    """95 % interval of a rate of right answers among ``count`` clips (Clopper and Pearson, 1934).

    It has a width where resamples all say the same: none of them can hold a mistake that no clip shows.
    """
    from scipy.stats import beta  # type: ignore[import-untyped]

    hits = rate * count
    low = 0.0 if hits <= 0 else float(beta.ppf(0.025, hits, count - hits + 1))
    high = 1.0 if hits >= count else float(beta.ppf(0.975, hits + 1, count - hits))
    return low, high


def _resample(
    scores: list[Tensor], targets: Tensor, metric: Metric, seed_weights: Tensor, rng: np.random.Generator
) -> Tensor:
    """The metric of each resample (R,)."""
    size, values = len(targets), []
    for weights in seed_weights.split(max(1, CHUNK // size)):
        draws = rng.integers(size, size=(len(weights), size))
        counts = torch.from_numpy(np.stack([np.bincount(draw, minlength=size) for draw in draws]))
        by_seed = torch.stack([metric.resampled(own, targets, counts) for own in scores])  # (S, r)
        values.append((weights.T * by_seed).sum(dim=0))
    return torch.cat(values)


def over_seeds(values: np.ndarray) -> dict[str, float | None]:
    """Mean over the seeds' figures (S,) and half of its 95 % interval by Student's t, as in Table IV."""
    from scipy.stats import t

    half = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return {"mean": float(values.mean()), "plus_minus": half}
