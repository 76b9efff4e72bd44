"""AdamW with the weight decay, gradient clipping and rates of masked autoencoders."""

from __future__ import annotations

import torch
from torch import nn

from ..runs.schedules import learning_rate
from .config import PretrainConfig

BETAS = (0.9, 0.95)
REFERENCE_BATCH = 256  # clips that base_lr is given for


def build_optimizer(module: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters; biases, norms and one-dimensional tensors do not decay.

    Args:
        module: The pre-training model.
        config: Gives the weight decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim <= 1 or name.endswith(".bias")
        (plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.base_lr, betas=BETAS, fused=True)


def rate_of_step(config: PretrainConfig, step: int, steps_per_epoch: int, global_batch: int) -> float:
    """Learning rate of one optimizer step: the base rate · global batch / 256, on its schedule.

    Args:
        config: Gives base rate and epochs.
        step: From 0.
        steps_per_epoch: Optimizer steps.
        global_batch: Clips of one optimizer step.
    """
    return learning_rate(
        step / steps_per_epoch,
        peak_lr=config.base_lr * global_batch / REFERENCE_BATCH,
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        epochs=config.epochs,
        decay_epochs=config.decay_epochs,
    )
