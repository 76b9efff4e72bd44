"""This package's own folder: ``model.safetensors`` and ``config.json``, read strictly, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from m2d_hub.config import ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, first_few
from m2d_hub.io import hash_into, reading_file, replacing
from m2d_hub.pretrained.tensors import FETCH_AGAIN, check_finite, open_safetensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by their names in :class:`m2d_hub.M2D`, and its configuration."""

    tensors: dict[str, Tensor]
    config: ModelConfig


def save_checkpoint(
    folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: ModelConfig
) -> None:
    """Writes ``model.safetensors`` and ``config.json``; the weights carry the configuration too."""
    folder = Path(folder)
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with replacing(folder / WEIGHTS_FILE) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            partial,
            metadata={"format": "pt", "m2d_hub_config": text},
        )
        _sort_header(partial)
    with replacing(folder / CONFIG_FILE) as partial:
        partial.write_text(text, encoding="utf-8")
    # safetensors writes for its owner alone.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def _sort_header(path: Path) -> None:
    """Orders a safetensors file's metadata, which is written in any order: equal weights give equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the rest is spaces, as the format allows
            file.seek(8)
            file.write(text.ljust(size))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a folder, or a lone ``.safetensors`` file, written by :func:`save_checkpoint`.

    The configuration is compared with the shapes in the file's header before anything of its sizes is made.

    Raises:
        CheckpointError: A file is missing, damaged, does not fit the other, or holds non-finite weights.
    """
    path = Path(path)
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} does not exist; a model folder holds {WEIGHTS_FILE} and {CONFIG_FILE}."
        )
    with open_safetensors(weights) as file:
        config = _read_config(weights, file.metadata)
        _check_sizes(config, file.shapes, weights)
        tensors = file.read()
    check_finite(tensors, weights)
    return Checkpoint(tensors, config)


def model_files(path: Path) -> list[Path]:
    """The files that a model is read from: those of this package's own folder, or the one that is meant.

    Raises:
        CheckpointError: A folder holds no model, or several.
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
            f"{path} holds neither {WEIGHTS_FILE} with {CONFIG_FILE} nor exactly one .pth file, but "
            f"{', '.join(file.name for file in files) or 'none of these'}; name the file to load."
        )
    return files


def sha256_of_model(path: Path) -> str:
    """One sha256 of all files that a model is read from."""
    digest = hashlib.sha256()
    for file in model_files(path):
        hash_into(digest, file)
    return digest.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one safetensors file.

    Raises:
        CheckpointError: The file is damaged or not a safetensors file.
    """
    with open_safetensors(path) as file:
        return file.read(), file.metadata


def _read_config(weights: Path, metadata: Mapping[str, str]) -> ModelConfig:
    beside = weights.with_name(CONFIG_FILE)
    if beside.is_file():
        with _reading_config(beside):
            text, origin = _read_text(beside), beside
    elif "m2d_hub_config" in metadata:
        text, origin = metadata["m2d_hub_config"], weights
    else:
        raise CheckpointError(
            f"{weights} has no {CONFIG_FILE} beside it that says its sizes; save the model again."
        )
    with _reading_config(origin):
        return _parsed_config(text)


def _reading_config(path: Path) -> contextlib.AbstractContextManager[None]:
    return reading_file(path, "a model configuration", FETCH_AGAIN, CheckpointError)


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"it has more than {MAX_CONFIG_BYTES:,} bytes")
    return text.decode("utf-8")


def _parsed_config(text: str) -> ModelConfig:
    try:
        return ModelConfig.from_dict(json.loads(text))
    except ConfigError as error:  # of a file, not of an argument
        raise ValueError(str(error)) from error


def _check_sizes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], origin: Path) -> None:
    """Refuses a configuration whose sizes are not those of the tensors.

    Raises:
        CheckpointError: The message says which.
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
        raise CheckpointError(f"{origin} does not fit its configuration: {'; '.join(wrong)}.")


def assign_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], origin: object, optional: str | None = None
) -> None:
    """Puts ``tensors`` in place of the module's parameters and buffers, all of them and nothing else.

    Args:
        module: Takes the tensors as they are, without a copy.
        tensors: By the module's names.
        origin: Where they came from, for messages.
        optional: Names beginning so may be there; the module knows what to do with them.

    Raises:
        CheckpointError: Names or shapes differ; the message lists them.
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
        raise CheckpointError(f"{origin} does not fit its configuration: {'; '.join(problems)}.")
    module.load_state_dict(dict(tensors), strict=True, assign=True)
