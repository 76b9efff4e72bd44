"""Optimizers of fine-tuning, with a rate of its own for each depth."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from m2d_hub.model import M2D

from ..runs.schedules import learning_rate
from .config import FinetuneConfig

MOMENTUM = 0.9  # of SGD and LARS


def build_finetune_optimizer(model: M2D, config: FinetuneConfig) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are trained; their groups carry a ``scale`` of the rate.

    With ``layer_decay`` d, the head and the final norm have the scale 1, the last block d, the one before it
    d², and so on down to the patch embedding (as in BEiT and in masked autoencoders' fine-tuning). Biases,
    norms and one-dimensional tensors do not decay. LARS adapts every tensor (timm's ``always_adapt``).

    Args:
        model: With its head.
        config: Gives optimizer, decays and rate.
    """
    depth = model.config.encoder.depth
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith((".bias", "cls_token"))
            members[_layer_of(name, depth), decays].append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "scale": config.layer_decay ** (depth + 1 - layer),
        }
        for (layer, decays), parameters in sorted(members.items(), key=lambda item: item[0])
    ]
    if config.optimizer == "lars":
        from timm.optim import Lars

        return Lars(groups, lr=config.lr, momentum=MOMENTUM, always_adapt=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _layer_of(name: str, depth: int) -> int:
    """0 for what comes before the blocks, 1 … depth for these, depth + 1 for what comes after."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith(("encoder.patch_embed.", "encoder.cls_token")) else depth + 1


def set_rate(
    optimizer: torch.optim.Optimizer, config: FinetuneConfig, step: int, steps_per_epoch: int
) -> float:
    """Sets the rate of one optimizer step, and returns that of the head.

    Args:
        optimizer: Of :func:`build_finetune_optimizer`.
        config: Gives peak, warm-up and epochs.
        step: From 0.
        steps_per_epoch: Optimizer steps.
    """
    lr = learning_rate(
        step / steps_per_epoch,
        peak_lr=config.lr,
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        epochs=config.epochs,
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    return lr
