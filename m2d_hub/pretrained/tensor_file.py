"""Tensors and settings of one file: a published ``.pth``, ``.safetensors``, or a run's kept checkpoint.

A run keeps ``RUN/checkpoints/step-….pt`` with the whole pre-training model under this package's own names;
``RUN/config.json`` says its sizes. Loading never runs code from a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from m2d_hub.errors import CheckpointError
from m2d_hub.io import reading
from m2d_hub.pretrained.folder import CONFIG_FILE, read_safetensors
from m2d_hub.pretrained.published_names import published_state
from m2d_hub.pretrained.tensors import RUN_STEP, read_pickled


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under their published names, and what the file or its run says of their sizes.

    Raises:
        CheckpointError: The file is not there, unsafe, damaged, or holds something else.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0], {}
    tensors, settings = read_pickled(path)
    return _of_run(path, settings[RUN_STEP], tensors) if RUN_STEP in settings else (tensors, settings)


def _of_run(path: Path, step: int, model: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A kept checkpoint's tensors, and its sizes as the run's configuration has them."""
    if any(name.startswith("backbone.") for name in model):
        raise CheckpointError(
            f"{path} is a checkpoint of a fine-tuning that is not done; run it to its end and give export/."
        )
    run = path.absolute().parent.parent / CONFIG_FILE
    name = f"{path}, a checkpoint of a run whose sizes {run} must say,"
    way_out = "Leave the file in its run's folder, or load the run's export/."
    with reading(name, "weights", way_out, CheckpointError):
        told = json.loads(run.read_text(encoding="utf-8"))
        config, offline = told["config"], told["config"].get("offline") or {}
        settings = {
            "run": f"{told.get('preset', 'run')}, step {step}",
            "input_size": config["input_size"],
            "sr": config["sample_rate"],
            "head_width": config.get("head_width"),
            "text": (offline["text_encoder"], offline["text_pooling"]) if "text_encoder" in offline else None,
        }
    return published_state(model), settings
