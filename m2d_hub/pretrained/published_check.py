"""Checks a published checkpoint's tensors, name by name and shape by shape, before they enter the cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.errors import CheckpointError
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import Block, Encoder
from m2d_hub.nn.head import Head
from m2d_hub.pretrained.folder import assign_tensors
from m2d_hub.pretrained.published import Published
from m2d_hub.pretrained.registry import ModelInfo


def check_published(published: Published, info: ModelInfo, origin: object) -> None:
    """Compares a converted checkpoint with what the registry says of it.

    Raises:
        CheckpointError: A part, size, tensor or shape differs; the message says which.
    """
    config = published.config
    found = {
        "sample_rate": config.frontend.sample_rate,
        "input_size": config.encoder.input_size,
        "patch_size": config.encoder.patch_size,
        "embed_dim": config.encoder.embed_dim,
        "depth": config.encoder.depth,
        "num_classes": None if config.head is None else config.head.num_classes,
        "text_space": config.clap is not None,
        "pretraining": bool(published.pretraining),
    }
    wrong = [
        f"{field} is {value} but must be {getattr(info, field)}"
        for field, value in found.items()
        if value != getattr(info, field)
    ]
    if wrong:
        raise CheckpointError(f"{origin} is not {info.name!r} as published: {'; '.join(wrong)}.")
    with torch.device("meta"):
        model, pretraining = _model(config), _pretraining(published.pretraining, config.encoder)
    assign_tensors(model, published.tensors, origin, optional=f"clap.{Clap.OPTIONAL_PREFIX}")
    assign_tensors(pretraining, published.pretraining, origin)


def _model(config: ModelConfig) -> nn.Module:
    parts: dict[str, nn.Module] = {"encoder": Encoder(config.encoder)}
    if config.head is not None:
        parts["head"] = Head(config.head, config.head_dim)
    if config.clap is not None:
        parts["clap"] = Clap(config.clap, config.encoder.embed_dim)
    return nn.ModuleDict(parts)


def _pretraining(tensors: Mapping[str, Tensor], encoder: EncoderConfig) -> nn.Module:
    """Predictor, target encoder and offline network, of the widths and depth that the tensors have."""
    module = nn.Module()
    if "offline_predictor.weight" in tensors:
        module.offline_predictor = nn.Linear(encoder.frame_dim, tensors["offline_predictor.weight"].shape[0])
    if not any(name.startswith(("decoder_", "target_", "mask_token")) for name in tensors):
        return module
    width = (
        tensors["decoder_embed.weight"].shape[0] if "decoder_embed.weight" in tensors else encoder.embed_dim
    )
    depth = len({name.split(".")[1] for name in tensors if name.startswith("decoder_blocks.")})
    num_freq, num_time = encoder.grid
    module.mask_token = nn.Parameter(torch.zeros(1, 1, width))
    module.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + num_freq * num_time, width))
    module.decoder_embed = nn.Linear(encoder.embed_dim, width)
    module.decoder_blocks = nn.ModuleList(Block(width, 1) for _ in range(depth))
    module.decoder_norm = nn.LayerNorm(width)
    module.decoder_pred = nn.Linear(width, encoder.embed_dim)
    module.target_blocks = nn.ModuleList(Block(encoder.embed_dim, 1) for _ in range(encoder.depth))
    module.target_norm = nn.LayerNorm(encoder.embed_dim)
    return module
