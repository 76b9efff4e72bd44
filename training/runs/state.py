"""Checkpoints of a run: written atomically, resumed exactly, and exported."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from m2d_hub.config import ModelConfig
from m2d_hub.errors import CheckpointError
from m2d_hub.pretrained.folder import save_checkpoint

from ..pretraining.config import PretrainConfig
from ..pretraining.offline import clap_config
from ..pretraining.pretrainer import published_state

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"step-(\d{9})\.pt")
RECENT_CHECKPOINTS = 2  # kept beside the periodic ones
WHOLE_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)
PUBLISHED_FILE = "published.pth"


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    root: Path

    @property
    def config_file(self) -> Path:
        """Resolved configuration."""
        return self.root / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON line a step."""
        return self.root / "metrics.jsonl"

    @property
    def skipped_file(self) -> Path:
        """Clips that could not be read, and why."""
        return self.root / "skipped.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``step-….pt``."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard logs."""
        return self.root / "tensorboard"

    @property
    def plots(self) -> Path:
        """Curves as PNG."""
        return self.root / "plots"

    @property
    def export(self) -> Path:
        """What ``m2d_hub.load_model`` takes, and the published layout beside it."""
        return self.root / "export"


@dataclass
class TrainingState:
    """All that a run needs to go on."""

    step: int  # optimizer steps done
    model: dict[str, Any]
    optimizer: dict[str, Any]


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Whole weights of a plain, DDP or FSDP model on the CPU; all processes must call it together."""
    weights: dict[str, Any] = get_model_state_dict(model, options=WHOLE_ON_CPU)
    return weights


def gather_state(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Whole weights and optimizer state, see :func:`gather_weights`."""
    return TrainingState(
        step=step,
        model=gather_weights(model),
        optimizer=get_optimizer_state_dict(model, optimizer, options=WHOLE_ON_CPU),
    )


def restore_state(state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts a whole state into a plain, DDP or FSDP model and its optimizer."""
    set_model_state_dict(model, state.model, options=WHOLE_ON_CPU)
    set_optimizer_state_dict(model, optimizer, state.optimizer, options=WHOLE_ON_CPU)


def write_state(folder: RunFolder, state: TrainingState, keep_every_steps: int) -> Path:
    """Writes a checkpoint, complete or not at all, and removes old ones.

    Args:
        folder: The run.
        state: What to write.
        keep_every_steps: Checkpoints at multiples of it are kept for good.
    """
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    path = folder.checkpoints / f"step-{state.step:09d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": state.step, "model": state.model, "optimizer": state.optimizer}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in list_checkpoints(folder)[:-RECENT_CHECKPOINTS]:
        if step_of(old) % keep_every_steps:
            old.unlink()
    return path


def list_checkpoints(folder: RunFolder) -> list[Path]:
    """Complete checkpoints, the latest last."""
    if not folder.checkpoints.is_dir():
        return []
    return sorted(path for path in folder.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Optimizer steps that a checkpoint's name tells."""
    return int(path.stem.removeprefix("step-"))


def read_state(path: Path) -> TrainingState:
    """Reads a checkpoint.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        return TrainingState(values["step"], values["model"], values["optimizer"])
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Delete it: the run then goes on from the checkpoint before it."
        ) from error


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


def export_run(folder: RunFolder, state: dict[str, Tensor], config: PretrainConfig, name: str) -> None:
    """Writes ``export/``: for ``load_model``, and all weights under published names beside."""
    arguments = argparse.Namespace(
        input_size=list(config.input_size), patch_size=list(config.patch_size), sr=config.sample_rate
    )
    with replaced_folder(folder.export) as partial:
        save_checkpoint(partial, model_tensors(state), model_config(config, name))
        torch.save({"model": published_state(state), "args": arguments}, partial / PUBLISHED_FILE)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of ``folder`` once it is whole."""
    partial, old = (folder.with_name(f"{folder.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
