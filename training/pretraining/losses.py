"""Loss functions of predictions and targets, always in float32.

Shapes: B batch, N tokens or frames, D width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANCE_EPSILON = 1e-6


def standardise(target: Tensor) -> Tensor:
    """Standardise each token over its channels, with the unbiased variance (paper, section III-A1).

    Args:
        target: (B, N, D).
    """
    variance, mean = torch.var_mean(target.float(), dim=-1, keepdim=True)
    return (target - mean) / (variance + VARIANCE_EPSILON).sqrt()


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of l2-normalised vectors, 2 − 2·cos, averaged over tokens (paper, equation 2).

    Args:
        prediction: (B, N, D).
        target: (B, N, D).
    """
    return 2.0 - 2.0 * F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()


def mse_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over tokens and channels.

    Args:
        prediction: (B, N, D).
        target: (B, N, D).
    """
    return F.mse_loss(prediction.float(), target.float())


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over clips and classes (paper, section IV-C).

    Args:
        logits: (B, K).
        labels: Multi-hot (B, K); NaN: unknown, adds no loss.
    """
    labels = labels.float()
    known = (~labels.isnan()).float()
    return F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(), weight=known)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over classes of which each clip has one, averaged over clips (paper, section III-B1).

    Args:
        logits: (B, K).
        labels: One-hot (B, K), or shares that sum to 1; NaN: unknown, adds no loss.
    """
    known = ~labels.isnan().any(dim=-1)
    entropy = -(labels.nan_to_num() * logits.float().log_softmax(dim=-1)).sum(dim=-1)
    return (entropy * known).sum() / known.sum().clamp(min=1)


def contrastive_loss(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy between clips and their captions, as in CLIP.

    Args:
        audio: Unit-length features (B, D).
        text: Unit-length features (B, D), row for row those of ``audio``.
        scale: Inverse temperature, a scalar.
    """
    logits = scale * audio.float() @ text.float().T  # (B, B)
    matches = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches))
