"""One linear layer on standardised features, trained as the paper does (section IV-B), for all seeds at once.

Shapes: N clips, L layers, K features, C classes, S seeds, E epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_layers import (
    LEARNING_RATE,
    MIX_LEARNING_RATE,
    BestEpochs,
    Examples,
    FitSettings,
    LinearLayers,
    losses_of,
    scores_of,
    train_epoch,
)

RATES = (LEARNING_RATE, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # to choose from, see FitSettings
EPSILON = 1e-5  # added to variances, as batch normalisation does


@dataclass(frozen=True)
class Standardiser:
    """Mean and variance of features over the training clips."""

    mean: Tensor  # (..., K)
    var: Tensor  # (..., K)

    @classmethod
    def of(cls, features: Tensor) -> Standardiser:
        """Statistics of features (N, ..., K)."""
        return cls(features.mean(dim=0), features.var(dim=0, correction=0))

    @property
    def scale(self) -> Tensor:
        """Divisors of centred features (..., K)."""
        return (self.var + EPSILON).sqrt()

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


@dataclass(frozen=True)
class LinearFit:
    """Trained layers of all seeds, each of its best epoch."""

    weight: Tensor  # (S, C, K)
    bias: Tensor  # (S, C)
    mix: Tensor  # (S, L) weights of the layers, their sum 1
    learning_rate: float
    score: Tensor  # (S,) on the valid clips
    loss: Tensor  # (S,) on the valid clips
    best_epoch: Tensor  # (S,) from 1
    has_converged: Tensor  # (S,) bool: stopped for want of a better epoch, not by the limit
    curves: dict[str, Tensor]  # (S, E) train_loss, valid_loss, valid_score; NaN after a seed has stopped

    def logits(self, features: Tensor) -> Tensor:
        """Maps standardised features (N, L, K) to logits (S, N, C)."""
        by_seed = zip(self.mix.to(features), self.weight, self.bias, strict=True)
        return torch.stack(
            [
                F.linear(torch.einsum("l,nlk->nk", mix, features), weight, bias)
                for mix, weight, bias in by_seed
            ]
        )


def fit_linear(
    train: Examples,
    valid: Examples,
    seeds: Sequence[int],
    settings: FitSettings,
    on_epoch: Callable[[], object] = lambda: None,
) -> LinearFit:
    """Trains one layer a seed.

    A better epoch is one of a higher score on the valid clips, or of the same and a lower loss.

    Args:
        train: Fits the layers.
        valid: Chooses the epoch, and the learning rate where that is to be chosen: with the first seed.
        seeds: Of the layers' first weights and the batches' order.
        settings: How.
        on_epoch: Called after each epoch.
    """
    rate = settings.learning_rate or _choose_rate(train, valid, seeds[:1], settings, on_epoch)
    if train.features.shape[1] == 1:
        return _fit(train, valid, seeds, rate, settings, on_epoch)
    # All layers of all seeds' batches at once would take much memory.
    return _joined([_fit(train, valid, [seed], rate, settings, on_epoch) for seed in seeds])


def _choose_rate(
    train: Examples,
    valid: Examples,
    seeds: Sequence[int],
    settings: FitSettings,
    on_epoch: Callable[[], object],
) -> float:
    """The paper's rate; where it is too low to converge, the one of RATES that is best on the valid clips."""
    tried = []
    for rate in RATES:
        tried.append(_fit(train, valid, seeds, rate, settings, on_epoch))
        if tried[0].has_converged.all():
            break
    return max(tried, key=lambda fit: (float(fit.score[0]), -float(fit.loss[0]))).learning_rate


def _fit(
    train: Examples,
    valid: Examples,
    seeds: Sequence[int],
    rate: float,
    settings: FitSettings,
    on_epoch: Callable[[], object],
) -> LinearFit:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    layers = LinearLayers(train, generators)
    optimizer = torch.optim.Adam(
        [
            {"params": [layers.weight, layers.bias], "lr": rate},
            {"params": [layers.mix], "lr": MIX_LEARNING_RATE},
        ]
    )
    best = BestEpochs(layers, settings)
    curves: dict[str, list[Tensor]] = {"train_loss": [], "valid_loss": [], "valid_score": []}
    for epoch in range(1, settings.max_epochs + 1):
        train_loss = train_epoch(layers, optimizer, train, generators, settings)
        with torch.no_grad():
            logits = layers(valid.features[None])
            valid_loss = losses_of(logits, valid.targets[None], settings)
            valid_score = scores_of(logits, valid.targets, settings.metric)
        running = best.is_running
        for name, values in zip(curves, (train_loss, valid_loss, valid_score), strict=True):
            curves[name].append(torch.where(running, values, torch.nan))
        best.update(layers, valid_score, valid_loss, epoch)
        on_epoch()
        if not best.is_running.any():
            break
    return LinearFit(
        weight=best.tensors["weight"],
        bias=best.tensors["bias"],
        mix=best.tensors["mix"].softmax(dim=1),
        learning_rate=rate,
        score=best.score.cpu(),
        loss=best.loss.cpu(),
        best_epoch=best.epoch.cpu(),
        has_converged=~best.is_running.cpu(),
        curves={name: torch.stack(values, dim=1).cpu() for name, values in curves.items()},
    )


def _joined(fits: Sequence[LinearFit]) -> LinearFit:
    """Fits of single seeds as one."""
    epochs = max(fit.curves["train_loss"].shape[1] for fit in fits)

    def padded(curve: Tensor) -> Tensor:
        return F.pad(curve, (0, epochs - curve.shape[1]), value=torch.nan)

    names = ("weight", "bias", "mix", "score", "loss", "best_epoch", "has_converged")
    return LinearFit(
        **{name: torch.cat([getattr(fit, name) for fit in fits]) for name in names},
        learning_rate=fits[0].learning_rate,
        curves={name: torch.cat([padded(fit.curves[name]) for fit in fits]) for name in fits[0].curves},
    )
