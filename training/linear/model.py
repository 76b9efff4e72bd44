"""The frozen encoder with its trained linear layer, as a model that tags.

Shapes: S seeds, C classes, K features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.config import Activation
from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D

from ..evaluation.labelled import LabelledList
from ..evaluation.linear_fit import LinearFit, Standardiser


def save_linear_model(
    folder: Path,
    model: M2D,
    labelled: LabelledList,
    fits: Sequence[tuple[Standardiser, LinearFit]],
) -> None:
    """Writes a folder that :func:`m2d_hub.load_model` takes; the model's head is replaced.

    The head's logits are the mean of the logits of all rounds' and seeds' layers. The standardisation is
    the head's batch normalisation, whose running statistics it becomes.

    Args:
        folder: Made if need be.
        model: The encoder that the features (the last layer's mean over frames) are of.
        labelled: Gives the classes.
        fits: Of each round.

    Raises:
        ConfigError: The layers are not for this encoder's clip features.
    """
    width = fits[0][1].weight.shape[2]
    if width != model.frame_dim:
        raise ConfigError(f"the layers take {width} features, the model's clips have {model.frame_dim}.")
    mean = torch.stack([standardiser.mean.flatten() for standardiser, _ in fits]).cpu().double().mean(dim=0)
    var = torch.stack([standardiser.var.flatten() for standardiser, _ in fits]).cpu().double().mean(dim=0)
    weight, bias = _mean_layer(fits)  # on features as they come
    activation: Activation = "sigmoid" if labelled.is_multi_label else "softmax"
    model.set_head(len(labelled.labels), features="frames", activation=activation, labels=labelled.labels)
    head = model.required_head()
    head.norm.running_mean = mean.to(head.linear.weight)
    head.norm.running_var = var.to(head.linear.weight)
    with torch.no_grad():
        head.linear.weight.copy_(weight * (var + head.norm.eps).sqrt())
        head.linear.bias.copy_(bias + weight @ mean)
    model.eval().save_pretrained(folder)


def _mean_layer(fits: Sequence[tuple[Standardiser, LinearFit]]) -> tuple[Tensor, Tensor]:
    """Weight (C, K) and bias (C,) on features that are not standardised, the mean over rounds and seeds."""
    weights, biases = [], []
    for standardiser, fit in fits:
        mean, scale = (part.flatten().cpu().double() for part in (standardiser.mean, standardiser.scale))
        scaled = fit.weight.cpu().double() / scale  # (S, C, K)
        weights.append(scaled.mean(dim=0))
        biases.append((fit.bias.cpu().double() - scaled @ mean).mean(dim=0))
    return torch.stack(weights).mean(dim=0), torch.stack(biases).mean(dim=0)
