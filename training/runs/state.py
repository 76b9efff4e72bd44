"""Checkpoints of a run: written whole or not at all, and resumed exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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

from m2d_hub.errors import CheckpointError, M2DError
from m2d_hub.io import reading, reading_file, replacing

from .folder import RunFolder

CHECKPOINT_NAME = re.compile(r"step-(\d{9})\.pt")
SUSPECT_SUFFIX = ".suspect"  # of a checkpoint whose weights gave no finite step
RECENT_CHECKPOINTS = 2  # kept beside the periodic ones
WHOLE_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class TrainingState:
    """All that a run needs to go on."""

    step: int  # optimizer steps done
    model: dict[str, Any]
    optimizer: dict[str, Any]
    loss_scale: dict[str, Any] = field(default_factory=dict)  # of float16, plain numbers


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
    path = checkpoint_path(folder, state.step)
    write_tensors(path, dict(vars(state)))
    for old in list_checkpoints(folder)[:-RECENT_CHECKPOINTS]:
        if step_of(old) % keep_every_steps:
            old.unlink()
    return path


def checkpoint_path(folder: RunFolder, step: int) -> Path:
    """Where the checkpoint after an optimizer step is, if it was kept."""
    return folder.checkpoints / f"step-{step:09d}.pt"


def list_checkpoints(folder: RunFolder) -> list[Path]:
    """Complete checkpoints, the latest last."""
    if not folder.checkpoints.is_dir():
        return []
    return sorted(path for path in folder.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Optimizer steps that a checkpoint's name tells."""
    return int(path.stem.removeprefix("step-"))


def set_aside(path: Path) -> Path:
    """Renames a checkpoint that is not to be resumed from; returns its new name."""
    return path.rename(path.with_name(path.name + SUSPECT_SUFFIX))


def read_state(path: Path) -> TrainingState:
    """Reads a checkpoint.

    Raises:
        CheckpointError: The file is damaged, or holds values that are not finite.
    """
    way_out = "Delete it: the run then goes on from the checkpoint before it."
    values = read_tensors(path, way_out)
    with reading(path, "a checkpoint", way_out, CheckpointError):
        scale = values.get("loss_scale", {})
        state = TrainingState(values["step"], values["model"], values["optimizer"], scale)
    try:
        require_finite({"weights": state.model, "optimizer": state.optimizer}, str(path))
    except NotFiniteError as error:
        raise CheckpointError(f"{error} {way_out}") from error
    return state


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    """Writes tensors and plain values, complete or not at all."""
    with replacing(path) as partial:
        torch.save(values, partial)


def read_tensors(path: Path, way_out: str) -> dict[str, Any]:
    """Reads what :func:`write_tensors` wrote.

    Args:
        path: The file.
        way_out: What to do if it is damaged.

    Raises:
        CheckpointError: It is.
    """
    with reading_file(path, "tensors and plain values", way_out, CheckpointError):
        values = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}")
    return values


class NotFiniteError(M2DError):
    """Weights, or what they give, are not finite."""


def require_finite(values: Any, what: str) -> None:
    """Refuses tensors with NaN or infinity.

    Args:
        values: Tensors in dictionaries, lists or tuples of any depth; other values are passed over.
        what: They are.

    Raises:
        NotFiniteError: The message names the first one that is not finite.
    """
    for name, tensor in _named_tensors(values):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NotFiniteError(f"{what} is not finite" + (f": {name}." if name else "."))


def _named_tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield name, values
    elif isinstance(values, (dict, list, tuple)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _named_tensors(value, f"{name}.{key}".lstrip("."))
