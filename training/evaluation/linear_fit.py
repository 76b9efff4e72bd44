"""One linear layer on standardised features, for all seeds at once.

A given learning rate trains the classifier of the paper's evaluation platform (section IV-B): the first
weights of ``nn.Linear``, batches of 200 clips, and stopping by the valid score alone. At its rate of 3e-5 the
first weights decide much of the result on small sets. The rate ``"auto"`` trains with settings that converge:
first weights near zero, batches of 128 clips, the best of several rates, and a lower valid loss is progress.

Shapes: N clips, B clips of a batch, L layers, K features, C classes, S seeds, E epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import Metric, accuracy, mean_average_precision

LEARNING_RATE = 3e-5
RATES = (LEARNING_RATE, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # to choose from, see FitSettings
MIX_LEARNING_RATE = 1e-2  # of the layers' weights, of which there are few
MAX_EPOCHS = 200
PATIENCE = 20  # epochs without a better result on the valid clips
BATCH_SIZE, AUTO_BATCH_SIZE = 200, 128
AUTO_STD = 2e-5  # of the first weights, as in the published heads
EPSILON = 1e-5  # added to variances, as in batch normalisation


@dataclass(frozen=True)
class FitSettings:
    """How a linear layer is trained."""

    is_multi_label: bool = False  # binary cross-entropy and mAP, else cross-entropy and accuracy
    # Of Adam. "auto": LEARNING_RATE if it converges within max_epochs, else the best of RATES on valid clips.
    learning_rate: float | Literal["auto"] = LEARNING_RATE
    max_epochs: int = MAX_EPOCHS
    patience: int = PATIENCE

    @property
    def is_auto(self) -> bool:
        """Whether to train with the settings that converge instead of the paper's."""
        return self.learning_rate == "auto"

    @property
    def batch_size(self) -> int:
        """Clips of an optimizer step."""
        return AUTO_BATCH_SIZE if self.is_auto else BATCH_SIZE

    @property
    def metric(self) -> Metric:
        """Metric of early stopping and of the result."""
        return mean_average_precision if self.is_multi_label else accuracy


@dataclass(frozen=True)
class Examples:
    """Standardised features with their targets."""

    features: Tensor  # (N, L, K); L > 1 to mix layers
    targets: Tensor  # (N, C) multi-hot


@dataclass(frozen=True)
class Standardiser:
    """Mean and variance of features over the training clips."""

    mean: Tensor  # (..., K)
    var: Tensor  # (..., K)

    @classmethod
    def of(cls, features: Tensor) -> Standardiser:
        """Return the statistics of features (N, ..., K)."""
        return cls(features.mean(dim=0), features.var(dim=0, correction=0))

    @property
    def scale(self) -> Tensor:
        """Divisors of centred features (..., K)."""
        return (self.var + EPSILON).sqrt()

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


@dataclass(frozen=True)
class LinearFit:
    """Trained layers of all seeds, each from its best epoch."""

    weight: Tensor  # (S, C, K)
    bias: Tensor  # (S, C)
    mix: Tensor  # (S, L) weights of the layers, which sum to 1
    learning_rate: float
    score: Tensor  # (S,) on the valid clips
    loss: Tensor  # (S,) on the valid clips
    best_epoch: Tensor  # (S,) from 1
    has_converged: Tensor  # (S,) bool: stopped by the patience, not by max_epochs
    curves: dict[str, Tensor]  # (S, E) train_loss, valid_loss, valid_score; NaN after a seed has stopped

    def logits(self, features: Tensor) -> Tensor:
        """Map standardised features (N, L, K) to logits (S, N, C)."""
        layers = zip(self.mix.to(features), self.weight, self.bias, strict=True)
        return torch.stack(
            [F.linear(torch.einsum("l,nlk->nk", mix, features), weight, bias) for mix, weight, bias in layers]
        )


def fit_linear(
    train: Examples,
    valid: Examples,
    seeds: Sequence[int],
    settings: FitSettings,
    on_epoch: Callable[[], object] = lambda: None,
) -> LinearFit:
    """Train one layer per seed.

    The best epoch has the highest score on the valid clips; of equal ones it is the last or, with the rate
    "auto", that of the lowest loss. The first seed chooses the rate "auto". ``on_epoch`` is called after each
    epoch.
    """
    fit = partial(_fit, train, valid, settings, on_epoch)
    rate = settings.learning_rate
    if rate == "auto":
        rate = _choose_rate(partial(fit, seeds[:1]))
    if train.features.shape[1] == 1:
        return fit(seeds, rate)
    # Batches of all layers for all seeds at once would need much memory.
    return _joined([fit([seed], rate) for seed in seeds])


def _choose_rate(fit: Callable[[float], LinearFit]) -> float:
    """Return the paper's rate or, if that does not converge, the rate with the best valid score."""
    tried = []
    for rate in RATES:
        tried.append(fit(rate))
        if tried[0].has_converged.all():
            break
    return max(tried, key=lambda fit: (float(fit.score[0]), -float(fit.loss[0]))).learning_rate


def _fit(
    train: Examples,
    valid: Examples,
    settings: FitSettings,
    on_epoch: Callable[[], object],
    seeds: Sequence[int],
    rate: float,
) -> LinearFit:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    layers = _LinearLayers(train, generators, settings.is_auto)
    optimizer = torch.optim.Adam(
        [
            {"params": [layers.weight, layers.bias], "lr": rate},
            {"params": [layers.mix], "lr": MIX_LEARNING_RATE},
        ]
    )
    best = _BestEpochs(layers, settings)
    curves: dict[str, list[Tensor]] = {"train_loss": [], "valid_loss": [], "valid_score": []}
    for epoch in range(1, settings.max_epochs + 1):
        train_loss = _train_epoch(layers, optimizer, train, generators, settings)
        with torch.no_grad():
            logits = layers(valid.features[None])
            valid_loss = _losses(logits, valid.targets[None], settings)
            valid_score = _scores(logits, valid.targets, settings.metric)
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
    """Join fits of single seeds into one."""
    epochs = max(fit.curves["train_loss"].shape[1] for fit in fits)

    def padded(curve: Tensor) -> Tensor:
        return F.pad(curve, (0, epochs - curve.shape[1]), value=torch.nan)

    names = ("weight", "bias", "mix", "score", "loss", "best_epoch", "has_converged")
    return LinearFit(
        **{name: torch.cat([getattr(fit, name) for fit in fits]) for name in names},
        learning_rate=fits[0].learning_rate,
        curves={name: torch.cat([padded(fit.curves[name]) for fit in fits]) for name in fits[0].curves},
    )


class _LinearLayers(torch.nn.Module):
    """The layers of all seeds, side by side."""

    def __init__(self, train: Examples, generators: Sequence[torch.Generator], is_auto: bool):
        super().__init__()
        _, num_layers, width = train.features.shape
        size, device = (train.targets.shape[1], width), train.features.device
        bound = width**-0.5  # of nn.Linear's first weights and bias
        weights, biases = [], []
        for generator in generators:
            weight, bias = torch.empty(size), torch.zeros(size[0])
            if is_auto:
                weight.normal_(0, AUTO_STD, generator=generator)
            else:
                for tensor in (weight, bias):
                    tensor.uniform_(-bound, bound, generator=generator)
            weights.append(weight)
            biases.append(bias)
        self.weight = torch.nn.Parameter(torch.stack(weights).to(device))
        self.bias = torch.nn.Parameter(torch.stack(biases).to(device))
        self.mix = torch.nn.Parameter(torch.zeros(len(generators), num_layers, device=device))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (S or 1, N, L, K) to logits (S, N, C)."""
        if features.shape[2] == 1:
            mixed = features[:, :, 0]
        else:
            by_seed = features.expand(len(self.mix), -1, -1, -1)
            mixed = torch.einsum("sl,snlk->snk", self.mix.softmax(dim=1), by_seed)
        return mixed @ self.weight.transpose(1, 2) + self.bias[:, None]


class _BestEpochs:
    """The best epoch of each seed so far."""

    def __init__(self, layers: _LinearLayers, settings: FitSettings):
        self.patience, self.is_auto = settings.patience, settings.is_auto
        seeds, device = len(layers.bias), layers.bias.device
        self.score = torch.full((seeds,), -torch.inf, device=device)
        self.loss = torch.full((seeds,), torch.inf, device=device)
        self.epoch = torch.zeros(seeds, dtype=torch.long, device=device)
        self.lowest_loss = self.loss.clone()
        self.last_progress = self.epoch.clone()  # epoch of the last progress
        self.is_running = torch.ones(seeds, dtype=torch.bool, device=device)
        self.tensors = {name: tensor.detach().clone() for name, tensor in layers.named_parameters()}

    def update(self, layers: _LinearLayers, score: Tensor, loss: Tensor, epoch: int) -> None:
        """Keep layers that are better, and stop seeds whose patience has run out."""
        is_equal = score == self.score
        is_better = (score > self.score) | (is_equal & (loss < self.loss) if self.is_auto else is_equal)
        is_better &= self.is_running
        is_progress = is_better | (loss < self.lowest_loss) if self.is_auto else is_better
        self.lowest_loss = torch.minimum(loss, self.lowest_loss)
        self.last_progress[is_progress] = epoch
        self.score = torch.where(is_better, score, self.score)
        self.loss = torch.where(is_better, loss, self.loss)
        self.epoch[is_better] = epoch
        for name, tensor in layers.named_parameters():
            self.tensors[name][is_better] = tensor.detach()[is_better]
        self.is_running &= epoch - self.last_progress < self.patience


def _train_epoch(
    layers: _LinearLayers,
    optimizer: torch.optim.Optimizer,
    train: Examples,
    generators: Sequence[torch.Generator],
    settings: FitSettings,
) -> Tensor:
    """Train on all clips once; return each seed's mean loss (S,)."""
    size = len(train.targets)
    orders = torch.stack([torch.randperm(size, generator=generator) for generator in generators])
    total = torch.zeros(len(orders), device=train.features.device)
    for rows in orders.to(total.device).split(settings.batch_size, dim=1):  # (S, B)
        losses = _losses(layers(train.features[rows]), train.targets[rows], settings)
        optimizer.zero_grad()
        losses.sum().backward()  # the seeds share no parameters
        optimizer.step()
        total += losses.detach() * rows.shape[1] / size
    return total


def _losses(logits: Tensor, targets: Tensor, settings: FitSettings) -> Tensor:
    """Return the mean loss of each seed (S,) from logits (S, B, C) and targets (S or 1, B, C)."""
    if settings.is_multi_label:
        targets = targets.expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(1, 2))
    return -(logits.log_softmax(dim=2) * targets).sum(dim=2).mean(dim=1)


def _scores(logits: Tensor, targets: Tensor, metric: Metric) -> Tensor:
    """Return the metric of each seed (S,) from logits (S, N, C) and targets (N, C)."""
    once = torch.ones(1, len(targets), dtype=torch.long)
    device, logits, targets = logits.device, logits.cpu(), targets.cpu()
    scores = torch.stack([metric.resampled(seed_logits, targets, once)[0] for seed_logits in logits])
    return scores.float().to(device)
