"""The linear layers of all seeds, trained side by side for an epoch, and the best epoch of each.

Shapes: N clips, B clips of a batch, L layers, K features, C classes, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import Metric, accuracy, mean_average_precision

LEARNING_RATE = 3e-5
MIX_LEARNING_RATE = 1e-2  # of the layers' weights, which are few
MAX_EPOCHS = 200
PATIENCE = 20  # epochs without a better result on the valid clips
BATCH_SIZE = 128
INITIAL_STD = 2e-5  # of the weights, as the published heads begin


@dataclass(frozen=True)
class FitSettings:
    """How a linear layer is trained."""

    is_multi_label: bool = False  # binary cross-entropy and mAP, else cross-entropy and accuracy
    learning_rate: float | None = None  # of Adam; None: LEARNING_RATE, or where that does not converge
    # within max_epochs, the best on the valid clips of that and higher ones
    max_epochs: int = MAX_EPOCHS
    patience: int = PATIENCE
    batch_size: int = BATCH_SIZE

    @property
    def metric(self) -> Metric:
        """The metric of early stopping and of the answer."""
        return mean_average_precision if self.is_multi_label else accuracy


@dataclass(frozen=True)
class Examples:
    """Standardised features with what is to be predicted of them."""

    features: Tensor  # (N, L, K); L > 1 to mix layers
    targets: Tensor  # (N, C) multi-hot


class LinearLayers(torch.nn.Module):
    """The layers of all seeds, side by side."""

    def __init__(self, train: Examples, generators: Sequence[torch.Generator]):
        super().__init__()
        _, num_layers, width = train.features.shape
        size, device = (train.targets.shape[1], width), train.features.device
        weights = [torch.empty(size).normal_(0, INITIAL_STD, generator=own) for own in generators]
        self.weight = torch.nn.Parameter(torch.stack(weights).to(device))
        self.bias = torch.nn.Parameter(torch.zeros(len(generators), size[0], device=device))
        self.mix = torch.nn.Parameter(torch.zeros(len(generators), num_layers, device=device))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (S or 1, N, L, K) to logits (S, N, C)."""
        if features.shape[2] == 1:
            mixed = features[:, :, 0]
        else:
            mixed = torch.einsum(
                "sl,snlk->snk", self.mix.softmax(dim=1), features.expand(len(self.mix), -1, -1, -1)
            )
        return mixed @ self.weight.transpose(1, 2) + self.bias[:, None]


class BestEpochs:
    """The best epoch of each seed so far."""

    def __init__(self, layers: LinearLayers, settings: FitSettings):
        self.patience = settings.patience
        seeds, device = len(layers.bias), layers.bias.device
        self.score = torch.full((seeds,), -torch.inf, device=device)
        self.loss = torch.full((seeds,), torch.inf, device=device)
        self.epoch = torch.zeros(seeds, dtype=torch.long, device=device)
        self.lowest_loss = self.loss.clone()
        self.last_progress = self.epoch.clone()  # epochs, in score or loss
        self.is_running = torch.ones(seeds, dtype=torch.bool, device=device)
        self.tensors = {name: tensor.detach().clone() for name, tensor in layers.named_parameters()}

    def update(self, layers: LinearLayers, score: Tensor, loss: Tensor, epoch: int) -> None:
        """Keeps what is better, and stops the seeds that have waited long enough."""
        is_better = (score > self.score) | ((score == self.score) & (loss < self.loss))
        is_better &= self.is_running
        is_progress = is_better | (loss < self.lowest_loss)
        self.lowest_loss = torch.minimum(loss, self.lowest_loss)
        self.last_progress[is_progress] = epoch
        self.score = torch.where(is_better, score, self.score)
        self.loss = torch.where(is_better, loss, self.loss)
        self.epoch[is_better] = epoch
        for name, tensor in layers.named_parameters():
            self.tensors[name][is_better] = tensor.detach()[is_better]
        self.is_running &= epoch - self.last_progress < self.patience


def train_epoch(
    layers: LinearLayers,
    optimizer: torch.optim.Optimizer,
    train: Examples,
    generators: Sequence[torch.Generator],
    settings: FitSettings,
) -> Tensor:
    """One pass over the clips; returns each seed's mean loss (S,)."""
    size = len(train.targets)
    orders = torch.stack([torch.randperm(size, generator=own) for own in generators])
    total = torch.zeros(len(orders), device=train.features.device)
    for rows in orders.to(total.device).split(settings.batch_size, dim=1):  # (S, B)
        losses = losses_of(layers(train.features[rows]), train.targets[rows], settings)
        optimizer.zero_grad()
        losses.sum().backward()  # each seed's own: no gradient crosses
        optimizer.step()
        total += losses.detach() * rows.shape[1] / size
    return total


def losses_of(logits: Tensor, targets: Tensor, settings: FitSettings) -> Tensor:
    """Mean loss of each seed (S,) from logits (S, B, C) and targets (S or 1, B, C)."""
    if settings.is_multi_label:
        targets = targets.expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(1, 2))
    return -(logits.log_softmax(dim=2) * targets).sum(dim=2).mean(dim=1)


def scores_of(logits: Tensor, targets: Tensor, metric: Metric) -> Tensor:
    """The metric of each seed (S,) from logits (S, N, C) and targets (N, C)."""
    once = torch.ones(1, len(targets), dtype=torch.long)
    device, logits, targets = logits.device, logits.cpu(), targets.cpu()
    scores = torch.stack([metric.resampled(own, targets, once)[0] for own in logits])
    return scores.float().to(device)
