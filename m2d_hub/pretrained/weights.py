"""The one reader of weights on disk, of any layout."""

from __future__ import annotations

from pathlib import Path

from m2d_hub.pretrained.folder import Checkpoint, load_checkpoint, model_files
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.tensors import open_safetensors


def read_weights(path: Path, sample_rate: int | None = None) -> Checkpoint:
    """Reads a model's folder or file.

    Args:
        path: This package's folder or ``.safetensors``, a published ``.pth`` or its folder, or a run's kept
            checkpoint.
        sample_rate: Hz, only for a published file that does not say it.

    Raises:
        CheckpointError: The weights are unsafe, damaged, non-finite, or of an unknown layout.
        ConfigError: The sample rate is told nowhere.
    """
    weights, *config = model_files(path)
    if config and weights.parent == path:
        return load_checkpoint(path)
    path = weights
    if path.suffix == ".safetensors" and not _has_published_names(path):
        return load_checkpoint(path)
    published = read_published(path, sample_rate=sample_rate)
    return Checkpoint(published.tensors, published.config)


def _has_published_names(path: Path) -> bool:
    with open_safetensors(path) as file:
        return not any(name.startswith("encoder.") for name in file.shapes)
