"""Weights that a run starts from, by any name that ``m2d_hub.load_model`` takes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from m2d_hub.convert import read_published
from m2d_hub.hub import load_model

from .checkpoint import PUBLISHED_FILE


def start_weights(name: str) -> dict[str, Tensor]:
    """Tensors under their published names: predictor and target encoder too, where the file has them.

    Args:
        name: A published ``.pth`` or its folder; this package's own folder, of a run's ``export/`` with all
            weights; or any other name that ``load_model`` takes, whose encoder alone is then taken.
    """
    file = _published_file(Path(name))
    if file is not None:
        published = read_published(file)
        encoder = {key.removeprefix("encoder."): tensor for key, tensor in published.tensors.items()}
        return {**_without(encoder, ("head.",)), **published.pretraining}
    model = load_model(name, device="cpu")
    return {
        key.removeprefix("encoder."): tensor
        for key, tensor in model.state_dict().items()
        if key.startswith("encoder.")
    }


def _published_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".pth" else None
    if (path / PUBLISHED_FILE).is_file():
        return path / PUBLISHED_FILE
    files = sorted(path.glob("*.pth")) if path.is_dir() else []
    return files[0] if len(files) == 1 else None


def _without(tensors: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        key.removeprefix("clap."): tensor for key, tensor in tensors.items() if not key.startswith(prefixes)
    }
