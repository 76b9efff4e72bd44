"""Names in the published checkpoints: their tensors, and AudioSet's classes in the order of their heads.

The heads order their outputs by machine identifier (MID) sorted as a string, not by AudioSet's own index.
``weights/audioset_labels.csv`` has names and identifiers of the AudioSet ontology
(https://research.google.com/audioset/), by Google, licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from m2d_hub.config import FrontendConfig

if TYPE_CHECKING:
    from torch import Tensor

with (Path(__file__).parents[1] / "weights" / "audioset_labels.csv").open(
    encoding="utf-8", newline=""
) as file:
    _CLASSES = sorted((row["mid"], row["name"]) for row in csv.DictReader(file))
AUDIOSET_MIDS: tuple[str, ...] = tuple(mid for mid, _ in _CLASSES)
AUDIOSET_LABELS: tuple[str, ...] = tuple(name for _, name in _CLASSES)

# Parts of a published checkpoint and the names of their tensors.
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

# Prefix of each module's published names, by its prefix in a pre-training model; longer ones come first.
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
    """Return the one of ``PARTS`` that a published name belongs to; None for an unknown name."""
    return next((part for part, pattern in _PATTERNS.items() if pattern.match(name)), None)


def published_name(name: str) -> str:
    """Return the published name of a pre-training model's tensor."""
    for ours, published in _PRETRAINER.items():
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a pre-training model under published names."""
    return {published_name(name): tensor for name, tensor in state.items()}


def published_tensors(tensors: Mapping[str, Tensor], frontend: FrontendConfig) -> dict[str, Tensor]:
    """Return an :class:`m2d_hub.M2D`'s tensors, except a head's, under published names, with the statistics.

    Args:
        tensors: By their names in the model.
        frontend: Configuration of the model's frontend, with the statistics.
    """
    import torch

    named = {
        name.removeprefix("encoder.").removeprefix("clap."): tensor
        for name, tensor in tensors.items()
        if not name.startswith("head.")
    }
    return named | {"norm_stats": torch.tensor([frontend.mean, frontend.std])}
