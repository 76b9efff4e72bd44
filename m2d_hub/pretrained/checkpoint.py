"""Read and write weights on disk: this package's folder, safetensors files and PyTorch files.

Files may come from anywhere: limits are checked before memory is allocated, only plain tensors are accepted,
and no code of a file runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from m2d_hub.config import ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, first_few
from m2d_hub.io import hash_into, open_file, reading, reading_file, replacing

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
RUN_STATE = {"step", "model", "optimizer"}  # entries of a training run's checkpoint
RUN_STEP = "step of a run"  # its step, among the settings
FETCH_AGAIN = "Download or save it again."
MAX_TENSORS = 20_000  # in a file; the largest release has about 600
MAX_CONFIG_BYTES = 10_000_000
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COUNTERS = ("num_batches_tracked", "position_ids")  # ends of names of integer tensors


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights and configuration."""

    tensors: dict[str, Tensor]  # by their names in M2D
    config: ModelConfig
    pretraining: dict[str, Tensor] = field(
        default_factory=dict
    )  # by published name: predictor, target encoder


def save_checkpoint(
    folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: ModelConfig
) -> None:
    """Write ``model.safetensors`` and ``config.json``; the weights contain the configuration too."""
    folder = Path(folder)
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False, default=float) + "\n"
    with replacing(folder / WEIGHTS_FILE) as partial:
        write_safetensors(partial, tensors, {"m2d_hub_config": text})
    with replacing(folder / CONFIG_FILE) as partial:
        partial.write_text(text, encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; with one entry of metadata, equal contents give equal files."""
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(copies, metadata))  # save_file makes files that only their owner can read


def load_checkpoint(path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Checkpoint:
    """Read a folder, or a single ``.safetensors`` file, written by :func:`save_checkpoint`.

    Weights are converted to ``dtype``; None keeps the stored precision.

    Raises:
        CheckpointError: A file is missing or damaged, or has non-finite weights.
    """
    path = Path(path)
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    tensors, metadata = read_safetensors(weights, dtype)
    return Checkpoint(tensors, _read_config(weights, metadata))


def model_files(path: Path) -> list[Path]:
    """Return the files that a model is read from: those of this package's folder, or one file.

    Raises:
        CheckpointError: A folder contains no model, or several.
    """
    if not path.is_dir():
        config = path.with_name(CONFIG_FILE)
        return [path, config] if path.suffix == ".safetensors" and config.is_file() else [path]
    saved = [path / WEIGHTS_FILE, path / CONFIG_FILE]
    if all(file.is_file() for file in saved):
        return saved
    files = sorted(path.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(
            f"{path} contains neither {WEIGHTS_FILE} with {CONFIG_FILE} nor exactly one .pth file, but "
            f"{', '.join(file.name for file in files) or 'none of these'}; give the file to load."
        )
    return files


def sha256_of_model(path: Path) -> str:
    """Return one SHA-256 of all files that a model is read from."""
    digest = hashlib.sha256()
    for file in model_files(path):
        hash_into(digest, file)
    return digest.hexdigest()


def read_safetensors(
    path: Path, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, converted to ``dtype``, and the metadata of one safetensors file."""
    with reading_file(path, "safetensors", FETCH_AGAIN, CheckpointError), safe_open(path, "pt") as file:
        return _checked_copies(file.keys(), file.get_tensor, path, dtype), file.metadata() or {}


def read_pickled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and settings of a PyTorch file, without running code from it."""
    with reading_file(path, "a PyTorch file", FETCH_AGAIN, CheckpointError):
        contents = _unpickled(path)
    args: Any = {}
    if isinstance(contents, Mapping) and isinstance(contents.get("model"), Mapping):
        is_run = contents.keys() >= RUN_STATE
        args = {RUN_STEP: contents["step"]} if is_run else contents.get("args") or {}
        contents = contents["model"]
    if not isinstance(contents, Mapping) or not contents:
        raise CheckpointError(f"{path} contains no tensors; a checkpoint maps names to tensors.")
    odd = [key for key, value in contents.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{path} is not a checkpoint: {first_few(odd, 5)} are not tensors.")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    tensors = _checked_copies(contents, contents.__getitem__, path)
    return tensors, dict(args) if isinstance(args, Mapping) else {}


def assign_tensors(module: nn.Module, tensors: Mapping[str, Tensor], origin: object) -> None:
    """Replace all of a module's parameters and buffers by ``tensors``, without copying them."""
    try:
        module.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        problems = " ".join(str(error).partition("\n")[2].split())[:1_000]
        raise CheckpointError(f"{origin} does not match its configuration: {problems}") from error


def _checked_copies(
    names: Collection[str],
    get_tensor: Callable[[str], Tensor],
    origin: object,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Copy tensors that are mapped from a file, which other programs may overwrite, and check them."""
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"{origin} has {len(names):,} tensors; a model has at most {MAX_TENSORS:,}.")
    copies: dict[str, Tensor] = {}
    sums, wrong = [], {}
    for name in names:
        tensor = get_tensor(name)
        if not _is_plain(name, tensor):
            wrong[name] = str(tensor.dtype).removeprefix("torch.")
            continue
        copies[name] = tensor.to(dtype if tensor.is_floating_point() else None, copy=True)
        sums.append(copies[name].sum(dtype=torch.float32))  # right after the copy: still in the cache
    if wrong:
        raise CheckpointError(
            f"{origin} contains tensors that are not weights ({', '.join(sorted(set(wrong.values())))}): "
            f"{first_few(list(wrong))}. Save weights as dense float32, float16, bfloat16 or float64."
        )
    if sums and not torch.stack(sums).isfinite().all():  # or the sum of large numbers overflows
        bad = [name for name, tensor in copies.items() if not tensor.isfinite().all()]
        if bad:
            raise CheckpointError(
                f"{origin} has non-finite weights in {first_few(bad)}; download or train it again."
            )
    return copies


def _is_plain(name: str, tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return False
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # expanded without memory
        return False
    return tensor.dtype in _FLOATS or (tensor.dtype is torch.int64 and name.endswith(_COUNTERS))


def _unpickled(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as opened:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in opened.infolist()):
                raise ValueError("its entries are compressed, which PyTorch never does")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:  # its text advises to load the file unsafely
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, or contains more than tensors and plain settings, which "
            "could run code. Download the file from its publisher again."
        ) from error


def _read_config(weights: Path, metadata: Mapping[str, str]) -> ModelConfig:
    beside = weights.with_name(CONFIG_FILE)
    if beside.exists():
        with open_file(beside, "a model configuration", CheckpointError) as file:
            text = file.read(MAX_CONFIG_BYTES)
    elif "m2d_hub_config" in metadata:
        beside, text = weights, metadata["m2d_hub_config"].encode()
    else:
        raise CheckpointError(f"{weights} has no {CONFIG_FILE} beside it; save the model again.")
    with reading(beside, "a model configuration", FETCH_AGAIN, CheckpointError):
        try:
            return ModelConfig.from_dict(json.loads(text.decode("utf-8")))
        except ConfigError as error:  # of a file, not of an argument
            raise ValueError(str(error)) from error
