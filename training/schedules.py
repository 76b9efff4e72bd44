"""Learning rate and EMA decay as plain functions of progress."""

from __future__ import annotations

import math


def learning_rate(
    epoch: float, *, peak_lr: float, min_lr: float, warmup_epochs: float, epochs: float
) -> float:
    """Linear warm-up, then half a cosine cycle (paper, section IV-A: as in masked autoencoders).

    Args:
        epoch: Progress in epochs, fractional: it is evaluated for every optimizer step.
        peak_lr: Rate at the end of the warm-up: base rate · effective batch / 256.
        min_lr: Rate at the end of the training.
        warmup_epochs: Epochs of linear growth from zero.
        epochs: Epochs of the whole training.
    """
    if epoch < warmup_epochs:
        return peak_lr * epoch / warmup_epochs
    progress = min(1.0, (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12))
    return min_lr + (peak_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(step: int, total_steps: int, start: float, end: float) -> float:
    """Decay rate τ of the target encoder, linear in the optimizer step (paper, section IV-A).

    Args:
        step: Optimizer step, from 0; the last one, ``total_steps`` − 1, gets ``end``.
        total_steps: Optimizer steps of the whole training.
        start: τ at step 0.
        end: τ at the last step.
    """
    return start + (end - start) * step / max(total_steps - 1, 1)
