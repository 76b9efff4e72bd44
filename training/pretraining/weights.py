"""Weights that a run starts from, by any name of ``m2d_hub.load_model``, and weights that it exports."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.config import ModelConfig
from m2d_hub.errors import CheckpointError
from m2d_hub.io import replacing_folder
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import WEIGHTS_FILE, save_checkpoint
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.published_names import published_state, published_tensors
from m2d_hub.pretrained.release import load_all_tensors
from m2d_hub.pretrained.source import resolve

from ..runs.folder import RunFolder
from .config import PretrainConfig
from .offline import clap_config

PUBLISHED_FILE = "published.pth"


def start_weights(name: str) -> dict[str, Tensor]:
    """Return tensors under their published names, with predictor and target encoder if the weights have them.

    Args:
        name: An alias of a published model; a published ``.pth`` or its folder;
            a run's ``export/`` or another folder of this package; or ``hf-hub:org/repo``.

    Raises:
        CheckpointError: A folder holds no weights, or several files.
    """
    path = resolve(name)
    if path.is_dir() and not (path / PUBLISHED_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        return load_all_tensors(path)
    published = read_published(_published_file(path))
    tensors = published_tensors(published.tensors, published.config.frontend)
    return {**tensors, **published.pretraining}


def _published_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / PUBLISHED_FILE).is_file():
        return path / PUBLISHED_FILE
    files = sorted(path.glob("*.pth"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path} must hold {WEIGHTS_FILE} or exactly one .pth file; found {found}.")
    return files[0]


def model_config(config: PretrainConfig, name: str) -> ModelConfig:
    """Return the configuration of the exported model."""
    offline = config.offline
    has_text = offline is not None and offline.kind == "text"
    clap = clap_config(offline, config.embed_dim) if offline is not None and has_text else None
    return ModelConfig(frontend=config.frontend, encoder=config.encoder, clap=clap, name=name)


def model_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a pre-training model that the exported model has, under its names."""
    kept = [name for name in state if name.startswith(("encoder.", "offline.clap."))]
    return {name.removeprefix("offline."): state[name] for name in kept}


def build_model(state: dict[str, Tensor], config: PretrainConfig) -> M2D:
    """Build the exported model from the state of a pre-training model, in eval mode, on the CPU."""
    model = M2D(model_config(config, "pretraining")).eval()
    model.load_state_dict(model_tensors(state))
    return model


def export_run(folder: RunFolder, state: dict[str, Tensor], config: PretrainConfig, name: str) -> None:
    """Write ``export/``: a folder for ``load_model``, and all weights under published names beside it."""
    arguments = argparse.Namespace(
        input_size=list(config.input_size), patch_size=list(config.patch_size), sr=config.sample_rate
    )
    with replacing_folder(folder.export) as partial:
        save_checkpoint(partial, model_tensors(state), model_config(config, name))
        torch.save({"model": published_state(state), "args": arguments}, partial / PUBLISHED_FILE)
