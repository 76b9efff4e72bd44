"""Tensors and settings of one file: a published ``.pth``, ``.safetensors``, or a run's kept checkpoint.

A run keeps ``RUN/checkpoints/step-….pt`` with the whole pre-training model under this package's own names;
``RUN/config.json`` says its sizes. Loading never runs code from a file.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_hub.errors import CheckpointError
from m2d_hub.pretrained.folder import CONFIG_FILE, read_safetensors
from m2d_hub.pretrained.published_names import published_state

_RUN_STATE = {"step", "model", "optimizer"}  # what a run's checkpoint holds


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under their published names, and what the file or its run says of their sizes.

    Raises:
        CheckpointError: The file is not there, unsafe, damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0], {}
    contents = _unpickle(path)
    args: Any = {}
    if isinstance(contents, Mapping) and isinstance(contents.get("model"), Mapping):
        if contents.keys() == _RUN_STATE:
            return _of_run(path, contents["step"], contents["model"])
        args = contents.get("args") or {}
        contents = contents["model"]
    if not isinstance(contents, Mapping) or not contents:
        raise CheckpointError(f"{path} holds no tensors; a checkpoint maps tensor names to tensors.")
    not_tensors = [key for key, value in contents.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise CheckpointError(f"{path} is not a checkpoint: {not_tensors[:5]} are no tensors.")
    return dict(contents), vars(args) if isinstance(args, argparse.Namespace) else dict(args)


def _unpickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} was not loaded: it holds more than tensors and plain settings, and unpickling it could "
            f"run code ({reason}). Fetch the file from its publisher again."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a PyTorch file ({error}); fetch it again."
        ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _of_run(path: Path, step: int, model: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A kept checkpoint's tensors, and its sizes as the run's configuration has them."""
    if any(name.startswith("backbone.") for name in model):
        raise CheckpointError(
            f"{path} is a checkpoint of a fine-tuning that is not done; run it to its end and give export/."
        )
    run = path.absolute().parent.parent / CONFIG_FILE
    try:
        told = json.loads(run.read_text(encoding="utf-8"))
        config, offline = told["config"], told["config"].get("offline") or {}
        settings = {
            "run": f"{told.get('preset', 'run')}, step {step}",
            "input_size": config["input_size"],
            "sr": config["sample_rate"],
            "head_width": config.get("head_width"),
            "text": (offline["text_encoder"], offline["text_pooling"]) if "text_encoder" in offline else None,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is a checkpoint of a run, whose sizes {run} must say, but that cannot be read "
            f"({error!r}). Leave the file in its run's folder, or load the run's export/."
        ) from error
    return published_state(model), settings
