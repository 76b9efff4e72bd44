"""Networks with weights drawn afresh, by name: what a model's sizes give before any training.

``random:m2d-0.7`` has the sizes of a model, ``random:80x608p16x16`` those that it says itself, of ViT-Base.
The seed is fixed: a name always means the same weights, which lie in the cache as a model's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from m2d_hub.config import EncoderConfig, FrontendConfig, ModelConfig
from m2d_hub.io import locked, plain_tensors, replacing_folder
from m2d_hub.nn.encoder import Encoder
from m2d_hub.pretrained.cache import cache_root
from m2d_hub.pretrained.folder import WEIGHTS_FILE, save_checkpoint
from m2d_hub.pretrained.registry import MODELS

UNTRAINED = "random:"
SEED = 0
_SIZES = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(p16k|p32k)?")


def told_config(word: str) -> ModelConfig | None:
    """Sizes that a word says, as 80x608p16x16, or that the table has of an alias; None: weights say them."""
    if match := _SIZES.fullmatch(word):
        mels, frames, patch_mels, patch_frames = map(int, match.groups()[:4])
        rate = 32_000 if match[5] == "p32k" else 16_000
        encoder = EncoderConfig(input_size=(mels, frames), patch_size=(patch_mels, patch_frames))
    elif word in MODELS and not MODELS[word].is_packaged:
        info = MODELS[word]
        rate = info.sample_rate
        encoder = EncoderConfig(
            input_size=info.input_size,
            patch_size=info.patch_size,
            embed_dim=info.embed_dim or EncoderConfig.embed_dim,
            depth=info.depth or EncoderConfig.depth,
        )
    else:
        return None
    return ModelConfig(FrontendConfig.for_sample_rate(rate, n_mels=encoder.input_size[0]), encoder)


def untrained_folder(
    name: str, config: ModelConfig, *, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """The folder of a network with weights of the fixed seed, made at the first call.

    Args:
        name: Under which it is recorded.
        config: Its frontend and encoder; it has no head and no text space.
        cache_dir: Of the cache that keeps it.
    """
    bare = {"head": None, "labels": None, "clap": None, "license": None, "source": None}
    config = replace(config, name=name, **bare)  # type: ignore[arg-type]
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    root = cache_root(cache_dir)
    folder = root / "random" / digest
    with locked(root / ".locks" / f"random-{digest}.lock"):
        if not (folder / WEIGHTS_FILE).is_file():
            with replacing_folder(folder) as partial:
                save_checkpoint(partial, _draw(config.encoder).state_dict(), config)
    return folder


def _draw(encoder: EncoderConfig) -> nn.Module:
    with plain_tensors(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.ModuleDict({"encoder": Encoder(encoder)})
