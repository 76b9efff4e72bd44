"""Checkpoints of a run: written atomically, and resumed exactly.

accelerate's ``save_state`` writes a folder of several files, which a kill leaves half-written, and pickles
random states. One file of tensors and plain numbers is complete or absent, loads without running code, and is
a model that ``m2d_hub.load_model`` takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
RECENT_CHECKPOINTS = 2  # kept beside the periodic ones
WHOLE_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)  # of plain, DDP and FSDP models
HINT = "Delete it to resume from the checkpoint before it."


class NotFiniteError(M2DError):
    """Weights, or outputs computed from them, are not finite."""


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return whole weights on the CPU; all processes call it together."""
    weights: dict[str, Any] = get_model_state_dict(model, options=WHOLE_ON_CPU)
    return weights


def gather_state(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """Return all that a resumed run needs after ``step`` optimizer steps; all processes call it together.

    Raises:
        NotFiniteError: Weights or optimizer state are not finite.
    """
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=WHOLE_ON_CPU)
    state = {"step": step, "model": gather_weights(model), "optimizer": optimizer_state}
    require_finite({"weights": state["model"], "optimizer": optimizer_state}, f"the state after step {step}")
    return state | {"loss_scale": scaler.state_dict()}


def write_state(folder: RunFolder, state: dict[str, Any], keep_every_steps: int) -> Path:
    """Write a checkpoint and remove old ones, except those at multiples of ``keep_every_steps``."""
    path = checkpoint_path(folder, state["step"])
    write_tensors(path, state)
    for old in list_checkpoints(folder)[:-RECENT_CHECKPOINTS]:
        if step_of(old) % keep_every_steps:
            old.unlink()
    return path


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: The file is damaged, or holds values that are not finite.
    """
    state = read_tensors(path, HINT)
    with reading(path, "a checkpoint", HINT, CheckpointError):
        if state["step"] != step_of(path):
            raise ValueError(f"it is of step {state['step']!r}")
        try:
            require_finite({"weights": state["model"], "optimizer": state["optimizer"]}, str(path))
        except NotFiniteError as error:
            raise CheckpointError(f"{error} {HINT}") from error
    return state


def restore_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> int:
    """Load a checkpoint into a model and its optimizer; return its optimizer steps.

    Raises:
        CheckpointError: The file is damaged, or of another model.
    """
    state = read_state(path)
    present = get_optimizer_state_dict(model, optimizer, options=WHOLE_ON_CPU)
    with reading(path, "a checkpoint of this run", HINT, CheckpointError):
        _require_names("weights", state["model"], get_model_state_dict(model))
        # only the first process gathers the whole optimizer state
        _require_names("optimizer state", state["optimizer"]["state"], present.get("state", {}))
        set_model_state_dict(model, state["model"], options=WHOLE_ON_CPU)
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=WHOLE_ON_CPU)
        if state.get("loss_scale"):
            scaler.load_state_dict(state["loss_scale"])
    return step_of(path)


def _require_names(what: str, values: dict[str, Any], expected: Any) -> None:
    if missing := set(expected) - set(values):
        raise ValueError(f"it lacks {what} of {len(missing)} tensors, such as {min(missing)}")


def checkpoint_path(folder: RunFolder, step: int) -> Path:
    """Return the path of the checkpoint after an optimizer step."""
    return folder.checkpoints / f"step-{step:09d}.pt"


def list_checkpoints(folder: RunFolder) -> list[Path]:
    """Return complete checkpoints, the latest last."""
    if not folder.checkpoints.is_dir():
        return []
    return sorted(path for path in folder.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Return the optimizer steps in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    """Write tensors and plain values atomically."""
    with replacing(path) as partial:
        torch.save(values, partial)


def read_tensors(path: Path, hint: str) -> dict[str, Any]:
    """Read what :func:`write_tensors` wrote, without running code.

    Raises:
        CheckpointError: The file is damaged; the message ends with ``hint``.
    """
    with reading_file(path, "tensors and plain values", hint, CheckpointError):
        values = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}")
    return values


def require_finite(values: Any, what: str) -> None:
    """Refuse tensors with NaN or infinity, in dictionaries, lists or tuples of any depth.

    Raises:
        NotFiniteError: The message names ``what`` and the first tensor that is not finite.
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
