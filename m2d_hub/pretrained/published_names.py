"""The published tensor names: which part of a model each belongs to, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from m2d_hub.config import FrontendConfig

# A part of a published checkpoint and the names of its tensors.
_PARTS = {
    "encoder": r"(cls_token|pos_embed|patch_embed\.proj|blocks\.\d+|norm)(\.|$)",
    "statistics": r"norm_stats$",
    "predictor": r"(mask_token|decoder_(embed|pos_embed|blocks|norm|pred))(\.|$)",
    "target encoder": r"target_(blocks|norm)(\.|$)",
    "offline network": r"offline_predictor\.",
    "text space": r"((audio_proj|text_proj)\.|logit_scale$)",
    "text encoder": r"text_encoder\.",
}
PARTS = tuple(_PARTS)
_PATTERNS = {part: re.compile(pattern) for part, pattern in _PARTS.items()}

# Published name (its beginning) of each module of a pre-training model; longer names come first.
_PRETRAINER = {
    "encoder.": "",
    "predictor.mask_token": "mask_token",
    "predictor.embed.": "decoder_embed.",
    "predictor.pos_embed": "decoder_pos_embed",
    "predictor.blocks.": "decoder_blocks.",
    "predictor.norm.": "decoder_norm.",
    "predictor.projection.": "decoder_pred.",
    "target_encoder.blocks.": "target_blocks.",
    "target_encoder.norm.": "target_norm.",
    "offline.projection.": "offline_predictor.",
    "offline.clap.": "",
}


def part_of(name: str) -> str | None:
    """The one of ``PARTS`` that a published name belongs to; None: the name is not known."""
    return next((part for part, pattern in _PATTERNS.items() if pattern.match(name)), None)


def published_name(name: str) -> str:
    """Published name of a tensor of a pre-training model."""
    for ours, published in _PRETRAINER.items():
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a pre-training model under published names."""
    return {published_name(name): tensor for name, tensor in state.items()}


def published_tensors(tensors: Mapping[str, Tensor], frontend: FrontendConfig) -> dict[str, Tensor]:
    """An :class:`m2d_hub.M2D`'s tensors, but a head's, under published names, with the statistics.

    Args:
        tensors: By their names in the model.
        frontend: Of the model; it holds the statistics.
    """
    named = {
        name.removeprefix("encoder.").removeprefix("clap."): tensor
        for name, tensor in tensors.items()
        if not name.startswith("head.")
    }
    return named | {"norm_stats": torch.tensor([frontend.mean, frontend.std])}
