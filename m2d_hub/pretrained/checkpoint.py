"""Read and write weights on disk: this package's folder, safetensors files and PyTorch files.

Files may come from anywhere: limits are checked before memory is allocated, only plain tensors are accepted,
and no code of a file runs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m2d_hub.config import ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, first_few
from m2d_hub.io import hash_into, open_file, reading_file, replacing

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
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with replacing(folder / WEIGHTS_FILE) as partial:
        write_safetensors(partial, tensors, {"m2d_hub_config": text})
    with replacing(folder / CONFIG_FILE) as partial:
        partial.write_text(text, encoding="utf-8")
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; equal tensors and metadata give equal files."""
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(copies, path, metadata={"format": "pt", **metadata})
    with path.open("r+b") as file:  # safetensors writes the metadata in random order
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the rest is spaces, as the format allows
            file.seek(8)
            file.write(text.ljust(size))


def load_checkpoint(path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Checkpoint:
    """Read a folder, or a single ``.safetensors`` file, written by :func:`save_checkpoint`.

    Weights are converted to ``dtype``; None keeps the stored precision. The configuration is compared with
    the shapes in the file's header before any tensor is read.

    Raises:
        CheckpointError: A file is missing or damaged, does not fit the other, or has non-finite weights.
    """
    path = Path(path)
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} does not exist; a model folder contains {WEIGHTS_FILE} and {CONFIG_FILE}."
        )
    with open_safetensors(weights) as file:
        config = _read_config(weights, file.metadata() or {})
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _check_sizes(config, shapes, weights)
        return Checkpoint(_checked_copies(_tensors_of(file), weights, dtype), config)


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


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file with a bounded number of tensors.

    Raises:
        CheckpointError: The file is missing or damaged, or has more tensors than any model.
    """
    with reading_file(path, "safetensors", FETCH_AGAIN, CheckpointError), safe_open(path, "pt") as file:
        _check_number(file.keys(), path)
        yield file


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of one safetensors file.

    Raises:
        CheckpointError: The file is damaged, or has tensors that are not finite weights.
    """
    with open_safetensors(path) as file:
        return _checked_copies(_tensors_of(file), path), file.metadata() or {}


def read_pickled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and settings of a PyTorch file, without running code from it.

    Raises:
        CheckpointError: The file is unsafe or damaged, or is not a checkpoint of finite weights.
    """
    with reading_file(path, "a PyTorch file", FETCH_AGAIN, CheckpointError):
        contents = _unpickled(path)
    args: Any = {}
    if isinstance(contents, Mapping) and isinstance(contents.get("model"), Mapping):
        is_run = contents.keys() >= RUN_STATE
        args = {RUN_STEP: contents["step"]} if is_run else contents.get("args") or {}
        contents = contents["model"]
    if not isinstance(contents, Mapping) or not contents:
        raise CheckpointError(f"{path} contains no tensors; a checkpoint maps names to tensors.")
    _check_number(contents, path)
    odd = [key for key, value in contents.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{path} is not a checkpoint: {first_few(odd, 5)} are not tensors.")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return _checked_copies(contents.items(), path), dict(args) if isinstance(args, Mapping) else {}


def assign_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], origin: object, optional: str | None = None
) -> None:
    """Replace all of a module's parameters and buffers by ``tensors``, without copying them.

    Names that begin with ``optional`` may be added.

    Raises:
        CheckpointError: Names or shapes differ; the message lists them and names ``origin``.
    """
    expected = module.state_dict()
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing {first_few(missing)}")
    extra = [name for name in tensors if name not in expected]
    if unexpected := [name for name in extra if optional is None or not name.startswith(optional)]:
        problems.append(f"unexpected {first_few(unexpected)}")
    problems += [
        f"{name} is {tuple(tensors[name].shape)} but must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{origin} does not match its configuration: {'; '.join(problems)}.")
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _tensors_of(file: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118


def _checked_copies(
    tensors: Iterable[tuple[str, Tensor]], origin: object, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Copy tensors that are mapped from a file, which other programs may overwrite, and check them.

    Raises:
        CheckpointError: Some are not dense floating-point numbers, or not finite; the message names them.
    """
    copies: dict[str, Tensor] = {}
    sums, wrong = [], {}
    for name, tensor in tensors:
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


def _check_number(names: Iterable[Any], path: Path) -> None:
    number = len(list(names))
    if number > MAX_TENSORS:
        raise CheckpointError(f"{path} has {number:,} tensors; a model has at most {MAX_TENSORS:,}.")


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
    origin = beside if beside.is_file() else weights
    with reading_file(origin, "a model configuration", FETCH_AGAIN, CheckpointError):
        if origin is beside:
            with open_file(beside, "a model configuration", CheckpointError) as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
            if len(text) > MAX_CONFIG_BYTES:
                raise ValueError(f"it has more than {MAX_CONFIG_BYTES:,} bytes")
            values = json.loads(text.decode("utf-8"))
        elif "m2d_hub_config" in metadata:
            values = json.loads(metadata["m2d_hub_config"])
        else:
            raise CheckpointError(f"{weights} has no {CONFIG_FILE} beside it; save the model again.")
        try:
            return ModelConfig.from_dict(values)
        except ConfigError as error:  # of a file, not of an argument
            raise ValueError(str(error)) from error


def _check_sizes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], origin: Path) -> None:
    """Compare a configuration's sizes with the shapes of the tensors.

    Raises:
        CheckpointError: They differ; the message says where.
    """
    encoder = config.encoder
    patches = encoder.grid[0] * encoder.grid[1]
    expected: dict[str, tuple[int, ...]] = {
        "encoder.pos_embed": (1, 1 + patches, encoder.embed_dim),
        "encoder.patch_embed.proj.weight": (encoder.embed_dim, encoder.in_channels, *encoder.patch_size),
        "encoder.blocks.0.mlp.fc1.weight": (encoder.mlp_ratio * encoder.embed_dim, encoder.embed_dim),
    }
    if config.head is not None:
        expected["head.linear.weight"] = (config.head.num_classes, config.head_dim)
    wrong = [
        f"{name} is {shapes[name]} but must be {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    wrong += [f"missing {name}" for name in expected if name not in shapes]
    depth = len({name.split(".")[2] for name in shapes if name.startswith("encoder.blocks.")})
    if depth != encoder.depth:
        wrong.append(f"depth is {depth} but must be {encoder.depth}")
    if wrong:
        raise CheckpointError(f"{origin} does not match its configuration: {'; '.join(wrong)}.")
