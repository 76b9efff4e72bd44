"""Optimizers of fine-tuning, with a rate of its own for each depth."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from m2d_hub.model import M2D

from ..runs.schedules import learning_rate
from .config import FinetuneConfig

MOMENTUM = 0.9  # of SGD and LARS
BETA1 = 0.9  # of Adam and AdamW


def parameter_groups(model: M2D, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Parameters that are trained, in groups with an ``lr_scale``, as timm's ``param_groups_layer_decay``.

    With ``layer_decay`` d, the head and the final norm have the scale 1, the last block d, the one before it
    d², and so on down to the patch embedding (as in BEiT and in masked autoencoders' fine-tuning). Biases,
    norms and one-dimensional tensors do not decay unless ``decay_all`` says so.

    Args:
        model: With its head.
        config: Gives the decays.
    """
    depth = model.config.encoder.depth
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and not name.endswith((".bias", "cls_token"))
            decays = config.decay_all or is_weight
            members[_layer_of(name, depth), decays].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": config.layer_decay ** (depth + 1 - layer),
        }
        for (layer, decays), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def build_finetune_optimizer(groups: list[dict[str, Any]], config: FinetuneConfig) -> torch.optim.Optimizer:
    """The optimizer of a fine-tuning.

    ``lars`` is timm's, which adapts only tensors that decay: without weight decay, as for the paper's
    AudioSet, it is SGD.

    Args:
        groups: As :func:`parameter_groups` gives them.
        config: Gives optimizer and rate.
    """
    if config.optimizer == "lars":
        from timm.optim import Lars

        return Lars(groups, lr=config.lr, momentum=MOMENTUM)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=(BETA1, config.beta2), amsgrad=config.amsgrad, fused=True)


def _layer_of(name: str, depth: int) -> int:
    """0 for what comes before the blocks, 1 … depth for these, depth + 1 for what comes after."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith(("encoder.patch_embed.", "encoder.cls_token")) else depth + 1


def finetune_rate(epoch: float, config: FinetuneConfig) -> float:
    """The head's rate: linear warm-up, then a cosine that has run since the start (timm's), or begins then.

    Args:
        epoch: Progress in epochs, fractional.
        config: Gives peak, warm-up and epochs.
    """
    if config.cosine_after_warmup:
        return learning_rate(
            epoch,
            peak_lr=config.lr,
            min_lr=config.min_lr,
            warmup_epochs=config.warmup_epochs,
            epochs=config.epochs,
        )
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = epoch / (config.cosine_epochs or config.epochs)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


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
    lr = finetune_rate(step / steps_per_epoch, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr
