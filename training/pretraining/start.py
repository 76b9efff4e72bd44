"""Weights that a run starts from, by any name that ``m2d_hub.load_model`` takes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from m2d_hub.errors import CheckpointError
from m2d_hub.pretrained.checkpoint import WEIGHTS_FILE
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.published_names import published_tensors
from m2d_hub.pretrained.release import load_all_tensors
from m2d_hub.pretrained.source import resolve

from .export import PUBLISHED_FILE


def start_weights(name: str) -> dict[str, Tensor]:
    """Tensors under their published names, predictor and target encoder too where the weights have them.

    Args:
        name: An alias of a published model; a published ``.pth`` or its folder;
            a run's ``export/`` or another folder of this package; or ``hf-hub:org/repo``.

    Raises:
        CheckpointError: A folder holds no weights, or several files.
    """
    path = resolve(name)
    if path.is_dir() and not (path / PUBLISHED_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        return load_all_tensors(path)
    published = read_published(_published_file(path))
    tensors = published_tensors(published.tensors, published.config.frontend)
    return {**tensors, **published.pretraining}


def _published_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / PUBLISHED_FILE).is_file():
        return path / PUBLISHED_FILE
    files = sorted(path.glob("*.pth"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path} must hold {WEIGHTS_FILE} or exactly one .pth file; found {found}.")
    return files[0]
