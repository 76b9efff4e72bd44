"""Label-free checks of features while a model trains: effective rank and explained variance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """All that both checks need of any number of tokens, added up batch by batch, in processes apart.

    Singular values of a matrix are the roots of the eigenvalues of its products, which can be summed.
    """

    count: Tensor  # tokens
    products: Tensor  # of their channels (D, D)
    total: Tensor  # of the normalised tokens (D,)
    normalised_products: Tensor  # of their channels (D, D)

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> TokenSums:
        """Of no token, in double precision: on the CPU where the device has none."""
        place = torch.device("cpu") if device.type == "mps" else device
        zeros = [torch.zeros(size, dtype=torch.float64, device=place) for size in ((), (dim, dim), (dim,))]
        return cls(zeros[0], zeros[1], zeros[2], zeros[1].clone())

    def add(self, tokens: Tensor) -> None:
        """Adds tokens (N, D)."""
        rows = tokens.to(self.total.device).double()
        unit = rows / (rows.norm(dim=1, keepdim=True) + NORM_EPSILON)
        self.count += len(rows)
        self.products += rows.T @ rows
        self.total += unit.sum(dim=0)
        self.normalised_products += unit.T @ unit

    def checks(self, prefix: str = "") -> dict[str, float]:
        """RankMe and explained variance, as the functions of the same names; empty without tokens."""
        count = int(self.count)
        if not count:
            return {}
        centred = self.normalised_products - torch.outer(self.total, self.total) / count
        return {
            f"{prefix}rank_me": _effective_rank(_singular_values(self.products, count)),
            f"{prefix}explained_variance_auc": _explained_area(_singular_values(centred, count)),
        }


def _singular_values(products: Tensor, count: int) -> Tensor:
    """Of a matrix (count, D) with these products of its columns (D, D), the largest first."""
    return torch.linalg.eigvalsh(products).clamp(min=0.0).sqrt().flip(0)[:count]


def _effective_rank(singular_values: Tensor) -> float:
    share = singular_values / singular_values.sum() + EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def _explained_area(singular_values: Tensor) -> float:
    if not singular_values.any():
        return 1.0  # one single point: all there is to explain is explained
    return float((singular_values.cumsum(0) / singular_values.sum()).mean())
