"""Checkpoints of a run: written whole or not at all, and resumed exactly."""

from __future__ import annotations

import re
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

from m2d_hub.errors import CheckpointError
from m2d_hub.files import replacing

from .folder import RunFolder

CHECKPOINT_NAME = re.compile(r"step-(\d{9})\.pt")
RECENT_CHECKPOINTS = 2  # kept beside the periodic ones
WHOLE_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)


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
    path = folder.checkpoints / f"step-{state.step:09d}.pt"
    with replacing(path) as partial:
        torch.save({"step": state.step, "model": state.model, "optimizer": state.optimizer}, partial)
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
