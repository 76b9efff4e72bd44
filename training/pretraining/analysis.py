"""Measurements between the steps: validation loss, effective rank and explained variance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.sampling import SampleKey
from ..runs.devices import best_effort
from .dataset import Batch, PretrainDataset, stack_samples
from .trainer import Trainer

GROUP_CLIPS = 16  # of one forward pass
FIXED_EPOCH = 1 << 30  # its random numbers are those of no training epoch
CHECKED_CLIPS = 1000  # whose tokens the label-free checks see
EPSILON = 1e-12  # keeps log p finite in RankMe
NORM_EPSILON = 1e-6


def rank_me(features: Tensor) -> float:
    """RankMe: the exponential of the entropy of the singular values (Garrido et al., ICML 2023).

    Args:
        features: Token features (N, D), not centred.

    Returns:
        Effective rank, from 1 to min(N, D).
    """
    return _effective_rank(torch.linalg.svdvals(features.double()))


def explained_variance_auc(features: Tensor) -> float:
    """Area under the cumulative explained variance of normalised features (Li et al., ECCV 2022).

    A representation that collapsed to one direction gives almost 1, an isotropic one about 0.5.

    Args:
        features: Token features (N, D).

    Returns:
        Mean over k = 1 … n of the share that the first k of n singular values have in their sum.
    """
    rows = features.double()
    rows = rows / (rows.norm(dim=1, keepdim=True) + NORM_EPSILON)
    return _explained_area(torch.linalg.svdvals(rows - rows.mean(dim=0)))


@dataclass
class TokenSums:
    """Sums over tokens that both checks need, added up batch by batch and over processes.

    Singular values of a matrix are the roots of the eigenvalues of its products, which can be summed.
    """

    count: Tensor  # tokens
    products: Tensor  # of their channels (D, D)
    total: Tensor  # of the normalised tokens (D,)
    normalised_products: Tensor  # of their channels (D, D)

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> TokenSums:
        """Return sums over no token, in double precision: on the CPU if the device has none."""
        held_on = torch.device("cpu") if device.type == "mps" else device
        zeros = [torch.zeros(size, dtype=torch.float64, device=held_on) for size in ((), (dim, dim), (dim,))]
        return cls(zeros[0], zeros[1], zeros[2], zeros[1].clone())

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
        return {
            f"{prefix}rank_me": _effective_rank(_singular_values(self.products, count)),
            f"{prefix}explained_variance_auc": _explained_area(_singular_values(centred, count)),
        }


def _singular_values(products: Tensor, count: int) -> Tensor:
    """Singular values of a matrix (count, D) with these products of its columns (D, D), the largest first."""
    return torch.linalg.eigvalsh(products).clamp(min=0.0).sqrt().flip(0)[:count]


def _effective_rank(singular_values: Tensor) -> float:
    share = singular_values / singular_values.sum() + EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def _explained_area(singular_values: Tensor) -> float:
    if not singular_values.any():
        return 1.0  # a single point: everything is explained
    return float((singular_values.cumsum(0) / singular_values.sum()).mean())


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
    sums = TokenSums.empty(clips.trainer.config.embed_dim, device)
    found: dict[str, float] = {}
    with best_effort(f"{prefix}rank_me"):
        for batch, counted in clips.groups():
            tokens = clips.trainer.tokens(batch)
            if counted:
                sums.add(tokens)
    sums = TokenSums(*(clips.sum_over_processes(value) for value in vars(sums).values()))
    with best_effort(f"{prefix}rank_me"):
        found = sums.checks(prefix)
    return found
