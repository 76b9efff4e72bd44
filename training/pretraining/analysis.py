"""Label-free checks of features while a model trains: effective rank and explained variance."""

from __future__ import annotations

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
    singular_values = torch.linalg.svdvals(features.double())
    share = singular_values / singular_values.sum() + EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


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
    singular_values = torch.linalg.svdvals(rows - rows.mean(dim=0))
    if not singular_values.any():
        return 1.0  # one single point: all there is to explain is explained
    cumulative = singular_values.cumsum(0) / singular_values.sum()
    return float(cumulative.mean())
