"""Learning rate and EMA decay as plain functions of progress."""

from __future__ import annotations

import logging
import math

logger = logging.getLogger(__name__)


def learning_rate(
    epoch: float,
    *,
    peak_lr: float,
    min_lr: float,
    warmup_epochs: float,
    epochs: float,
    decay_epochs: float | None = None,
) -> float:
    """Linear warm-up, then half a cosine cycle (paper, section IV-A: as in masked autoencoders).

    With ``decay_epochs`` the rate stays at its peak until the last epochs, and only they are a cosine: what
    comes before them does not depend on how long the training will be (arXiv:2405.18392).

    Args:
        epoch: Progress in epochs, fractional: it is evaluated for every optimizer step.
        peak_lr: Rate at the end of the warm-up: base rate · effective batch / 256.
        min_lr: Rate at the end of the training.
        warmup_epochs: Epochs of linear growth from zero.
        epochs: Epochs of the whole training.
        decay_epochs: Epochs of the cosine at the end; None, or too many: all after the warm-up.
    """
    if epoch < warmup_epochs:
        return peak_lr * epoch / warmup_epochs
    start = warmup_epochs if decay_epochs is None else max(warmup_epochs, epochs - decay_epochs)
    progress = min(1.0, max(0.0, epoch - start) / max(epochs - start, 1e-12))
    return min_lr + (peak_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warn_of_warmup(warmup_epochs: float, epochs: int) -> None:
    """Tells of a warm-up that is as long as the training, or longer."""
    if warmup_epochs >= epochs:
        logger.warning(
            "warmup_epochs is %g, but the training has %d epochs: the learning rate never comes to its peak. "
            "Set warmup_epochs too, for instance %g.",
            warmup_epochs,
            epochs,
            epochs / 10,
        )


def ema_decay(step: int, total_steps: int, start: float, end: float) -> float:
    """Decay rate τ of the target encoder, linear in the optimizer step (paper, section IV-A).

    Args:
        step: Optimizer step, from 0; the last one, ``total_steps`` − 1, gets ``end``.
        total_steps: Optimizer steps of the whole training.
        start: τ at step 0.
        end: τ at the last step.
    """
    return start + (end - start) * step / max(total_steps - 1, 1)
