"""Input of the head from whole clips, and the head that linear evaluation finds on it.

Shapes: N clips, K features of the head, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2d_hub.model import M2D

from ..evaluation.labelled import Fold
from ..evaluation.linear_fit import Examples, FitSettings, Standardiser, fit_linear
from .config import FinetuneConfig
from .data import clips_to_score

LEARNING_RATE = 1e-3  # of the linear layer: one that converges on small lists, with early stopping


def head_features(backbone: M2D, clips: list[Tensor], batch_size: int) -> Tensor:
    """Input of the head (N, K) from whole waveforms, on the CPU: all frames count, as in inference."""
    return backbone.required_head().clip_input(backbone.encode_clip(clips, batch_size=batch_size))


@torch.no_grad()
def fit_head(backbone: M2D, data: Fold, config: FinetuneConfig, seed: int) -> None:
    """Gives the head the standardisation and the layer that linear evaluation ends with.

    Args:
        backbone: On the device of the training.
        data: Its training clips fit the layer, its validation clips choose the epoch.
        config: The run.
        seed: Of the layer's first weights and of the order of the clips.
    """
    backbone.eval()
    features = [
        torch.cat(
            [
                head_features(backbone, clips, config.batch_size)
                for clips in clips_to_score(part.files, backbone, config)
            ]
        )
        for part in (data.train, data.valid)
    ]
    head = backbone.required_head()
    standardise = Standardiser.of(features[0])
    train, valid = (
        Examples(standardise(own)[:, None], part.targets)
        for own, part in zip(features, (data.train, data.valid), strict=True)
    )
    settings = FitSettings(head.config.activation == "sigmoid", learning_rate=LEARNING_RATE)
    with torch.enable_grad():
        fit = fit_linear(train, valid, [seed], settings)
    head.norm.running_mean = standardise.mean.to(head.linear.weight)
    head.norm.running_var = standardise.var.to(head.linear.weight)
    head.linear.weight.copy_(fit.weight[0])
    head.linear.bias.copy_(fit.bias[0])
