"""Measurements between the steps: validation loss, effective rank and explained variance."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.sampling import SampleKey
from ..runs.processes import best_effort
from .dataset import Batch, PretrainDataset, stack_samples
from .trainer import Trainer

GROUP_CLIPS = 16  # of one forward pass
FIXED_EPOCH = 1 << 30  # its random numbers are those of no training epoch
CHECKED_CLIPS = 1000  # whose tokens the label-free checks see
EPSILON = 1e-12  # keeps log p finite in RankMe
NORM_EPSILON = 1e-6
ROUNDING = 1e-6  # of singular values of unit vectors, each


def rank_me(features: Tensor) -> float:
    """RankMe: the exponential of the entropy of the singular values (Garrido et al., ICML 2023).

    Args:
        features: Token features (N, D), not centred.

    Returns:
        Effective rank, from 1 to min(N, D).
    """
    return TokenSums.of(features).checks()["rank_me"]


def explained_variance_auc(features: Tensor) -> float:
    """Area under the cumulative explained variance of normalised features (Li et al., ECCV 2022).

    A representation that collapsed to one direction gives almost 1, an isotropic one about 0.5.

    Args:
        features: Token features (N, D).

    Returns:
        Mean over k = 1 … n of the share that the first k of n singular values have in their sum.
    """
    return TokenSums.of(features).checks()["explained_variance_auc"]


class TokenSums:
    """Sums over tokens that both checks need, added up batch by batch and over processes.

    Singular values of a matrix are the roots of the eigenvalues of its products, which can be summed.
    """

    def __init__(self, dim: int, device: torch.device):
        """Start with no token, in double precision: on the CPU if the device has none."""
        zeros = functools.partial(
            torch.zeros, dtype=torch.float64, device="cpu" if device.type == "mps" else device
        )
        self.count = zeros(())  # tokens
        self.products = zeros((dim, dim))  # of their channels
        self.total = zeros(dim)  # of the normalised tokens
        self.normalised_products = zeros((dim, dim))

    @classmethod
    def of(cls, tokens: Tensor) -> TokenSums:
        """Return the sums over tokens (N, D)."""
        sums = cls(tokens.shape[1], tokens.device)
        sums.add(tokens)
        return sums

    def add(self, tokens: Tensor) -> None:
        """Add tokens (N, D)."""
        rows = tokens.to(self.total.device).double()
        unit = rows / (rows.norm(dim=1, keepdim=True) + NORM_EPSILON)
        self.count += len(rows)
        self.products += rows.T @ rows
        self.total += unit.sum(dim=0)
        self.normalised_products += unit.T @ unit

    def checks(self, prefix: str = "") -> dict[str, float]:
        """Return RankMe and explained variance; empty without tokens."""
        count = int(self.count)
        if not count:
            return {}
        centred = self.normalised_products - torch.outer(self.total, self.total) / count
        values, spread = (_singular_values(products, count) for products in (self.products, centred))
        share = values / values.sum() + EPSILON
        is_point = spread.sum() < ROUNDING * count**0.5
        area = torch.ones(1) if is_point else spread.cumsum(0) / spread.sum()  # a point is explained
        return {
            f"{prefix}rank_me": float(torch.exp(-(share * share.log()).sum())),
            f"{prefix}explained_variance_auc": float(area.mean()),
        }


def _singular_values(products: Tensor, count: int) -> Tensor:
    """Singular values of a matrix (count, D) with these products of its columns (D, D), the largest first."""
    return torch.linalg.eigvalsh(products).clamp(min=0.0).sqrt().flip(0)[:count]


class ValidationSet:
    """Clips and crops that are always the same, in groups of a fixed size.

    Figures depend neither on batch_size nor on the number of processes.
    """

    def __init__(self, dataset: PretrainDataset, trainer: Trainer, max_clips: int | None = None):
        """Take ``max_clips`` clips at equal distances, or all."""
        self.dataset, self.trainer, self.accelerator = dataset, trainer, trainer.accelerator
        self.count = min(len(dataset), max_clips or len(dataset))

    def groups(self) -> Iterator[tuple[Batch, int]]:
        """Yield groups of this process with the number of clips that count; as many in each process."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        groups = math.ceil(self.count / GROUP_CLIPS)
        for group in range(rank, math.ceil(groups / processes) * processes, processes):
            first = group % groups * GROUP_CLIPS
            positions = range(first, min(first + GROUP_CLIPS, self.count))
            batch = stack_samples([self.dataset[self._key(position)] for position in positions])
            self.trainer.skipped += batch.left_out
            yield batch, len(positions) if group < groups else 0

    def _key(self, position: int) -> SampleKey:
        return SampleKey(FIXED_EPOCH, position, position * len(self.dataset) // self.count)

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Add up the values of all processes, which call it together."""
        moved = values.to(self.accelerator.device) if self.accelerator.num_processes > 1 else values
        return self.accelerator.reduce(moved, reduction="sum").to(values.device)


def measure_loss(clips: ValidationSet) -> dict[str, float]:
    """Return the mean loss, or nothing if it cannot be measured. All processes call it together."""
    total, counted_clips = math.nan, 0
    with best_effort("validation_loss"):
        total = 0.0
        for batch, counted in clips.groups():
            loss = clips.trainer.loss(batch)
            total += loss * counted if counted else 0.0
            counted_clips += counted
    summed, count = clips.sum_over_processes(torch.tensor([total, counted_clips])).tolist()
    return {"validation_loss": summed / count} if count and math.isfinite(summed) else {}


def check_tokens(clips: ValidationSet, prefix: str = "") -> dict[str, float]:
    """Return RankMe and explained variance of all tokens of the unmasked clips, under names with a prefix.

    All processes call it together.
    """
    device = clips.accelerator.device
    sums = TokenSums(clips.trainer.config.embed_dim, device)
    found: dict[str, float] = {}
    with best_effort(f"{prefix}rank_me"):
        for batch, counted in clips.groups():
            tokens = clips.trainer.tokens(batch)
            if counted:
                sums.add(tokens)
    for name, value in vars(sums).items():
        setattr(sums, name, clips.sum_over_processes(value))
    with best_effort(f"{prefix}rank_me"):
        found = sums.checks(prefix)
    return found
