"""A pre-trained model for ``load_model``, and all its weights under their published names."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from m2d_hub.config import ModelConfig
from m2d_hub.io import replacing_folder
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import save_checkpoint
from m2d_hub.pretrained.published_names import published_state

from ..runs.folder import RunFolder
from .config import PretrainConfig
from .offline import clap_config

PUBLISHED_FILE = "published.pth"


def model_config(config: PretrainConfig, name: str) -> ModelConfig:
    """Configuration of the exported model."""
    offline = config.offline
    with_clap = offline is not None and offline.kind == "text"
    return ModelConfig(
        frontend=config.frontend,
        encoder=config.encoder,
        clap=clap_config(offline, config.embed_dim) if with_clap and offline is not None else None,
        name=name,
    )


def model_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pre-training model's tensors that an exported model has, under their names there."""
    tensors = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    clap = "offline.clap."
    return tensors | {
        name[len("offline.") :]: tensor for name, tensor in state.items() if name.startswith(clap)
    }


def build_model(state: dict[str, Tensor], config: PretrainConfig) -> M2D:
    """The exported model of a pre-training model's state, in eval mode, on the CPU."""
    model = M2D(model_config(config, "pretraining")).eval()
    model.load_state_dict(model_tensors(state))
    return model


def export_run(folder: RunFolder, state: dict[str, Tensor], config: PretrainConfig, name: str) -> None:
    """Writes ``export/``: for ``load_model``, and all weights under published names beside."""
    arguments = argparse.Namespace(
        input_size=list(config.input_size), patch_size=list(config.patch_size), sr=config.sample_rate
    )
    with replacing_folder(folder.export) as partial:
        save_checkpoint(partial, model_tensors(state), model_config(config, name))
        torch.save({"model": published_state(state), "args": arguments}, partial / PUBLISHED_FILE)
