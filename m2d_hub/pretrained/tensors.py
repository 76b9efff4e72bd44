"""Tensors out of files that come from outside: limits first, plain numbers only, one kind of error."""

from __future__ import annotations

import argparse
import contextlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from m2d_hub.errors import CheckpointError, first_few, reason_of
from m2d_hub.io import reading_file

RUN_STATE = {"step", "model", "optimizer"}  # what a run's kept checkpoint holds
RUN_STEP = "step of a run"  # its step, among the settings
FETCH_AGAIN = "Fetch or save it again."
MAX_TENSORS = 20_000  # in a file; the largest release has about 600
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COUNTERS = ("num_batches_tracked", "position_ids")  # ends of names of whole numbers


@dataclass(frozen=True)
class Safetensors:
    """An open safetensors file, whose header was read."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]  # by name
    _file: Any

    def read(self) -> dict[str, Tensor]:
        """All tensors, copied: another program may write the file while they are used.

        Raises:
            CheckpointError: One is not of plain numbers.
        """
        with _reading_safetensors(self.path):
            tensors = {name: self._file.get_tensor(name).clone() for name in self.shapes}
        check_plain(tensors, self.path)
        return tensors


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Safetensors]:
    """Opens a safetensors file and reads its header.

    Raises:
        CheckpointError: The file is missing, damaged, or of more tensors than a model has.
    """
    with contextlib.ExitStack() as stack:
        with _reading_safetensors(path):
            file = stack.enter_context(safe_open(path, framework="pt"))
            names = list(file.keys())
            _check_number(names, path)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            opened = Safetensors(path, file.metadata() or {}, shapes, file)
        yield opened


def read_pickled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a PyTorch file, without running code from it.

    Raises:
        CheckpointError: The file is unsafe, damaged, or holds something else.
    """
    with reading_file(path, "a PyTorch file", FETCH_AGAIN, CheckpointError):
        contents = _unpickled(path)
    args: Any = {}
    if isinstance(contents, Mapping) and isinstance(contents.get("model"), Mapping):
        is_run = contents.keys() >= RUN_STATE
        args = {RUN_STEP: contents["step"]} if is_run else contents.get("args") or {}
        contents = contents["model"]
    if not isinstance(contents, Mapping) or not contents:
        raise CheckpointError(f"{path} holds no tensors; a checkpoint maps tensor names to tensors.")
    _check_number(contents, path)
    odd = [key for key, value in contents.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{path} is not a checkpoint: {odd[:5]} are no tensors.")
    check_plain(contents, path)
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    # Copied: another program may write the file while the tensors are used.
    copies = {name: tensor.clone() for name, tensor in contents.items()}
    return copies, dict(args) if isinstance(args, Mapping) else {}


def check_plain(tensors: Mapping[str, Tensor], origin: object) -> None:
    """Refuses tensors that are no dense floating-point numbers with memory of their own.

    Raises:
        CheckpointError: The message names ``origin`` and the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not _is_plain(name, tensor)]
    if bad:
        kinds = ", ".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in bad}))
        raise CheckpointError(
            f"{origin} holds tensors that are no weights ({kinds}): {first_few(bad)}. Weights are dense, of "
            "float32, float16, bfloat16 or float64; save them so."
        )


def check_finite(tensors: Mapping[str, Tensor], origin: object) -> None:
    """Raises CheckpointError naming ``origin`` and the tensors that hold NaN or infinity."""
    suspects = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32))
    ]
    bad = [name for name in suspects if not torch.isfinite(tensors[name]).all()]
    if bad:
        raise CheckpointError(
            f"{origin} holds non-finite weights in {first_few(bad)}; fetch or train it again."
        )


def _is_plain(name: str, tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return False
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # expanded without memory
        return False
    return tensor.dtype in _FLOATS or (tensor.dtype is torch.int64 and name.endswith(_COUNTERS))


def _check_number(names: Iterable[Any], path: Path) -> None:
    number = len(list(names))
    if number > MAX_TENSORS:
        raise CheckpointError(
            f"{path} holds {number:,} tensors; a model has {MAX_TENSORS:,} at most: this is none."
        )


def _reading_safetensors(path: Path) -> contextlib.AbstractContextManager[None]:
    return reading_file(path, "safetensors", FETCH_AGAIN, CheckpointError)


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was not loaded: it holds more than tensors and plain settings, and unpickling it could "
            f"run code ({reason_of(error)}). Fetch the file from its publisher again."
        ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
