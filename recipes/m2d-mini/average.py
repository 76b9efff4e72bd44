"""Average the weights of models that were trained further from the same model.

    python recipes/m2d-mini/average.py OUT/average OUT/first/export OUT/longer/export

All models have the same weight (model soups, Wortsman et al., ICML 2022, "uniform"). The configuration is
that of the first model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from m2d_hub.errors import CheckpointError
from m2d_hub.pretrained.checkpoint import load_checkpoint, save_checkpoint


def average(models: list[Path], out: Path) -> None:
    """Write the mean of the weights of model folders as a model folder, in float32.

    Raises:
        CheckpointError: Their tensors differ in names or shapes.
    """
    first, *others = checkpoints = [load_checkpoint(model) for model in models]
    for model, checkpoint in zip(models[1:], others, strict=True):
        if _shapes(checkpoint.tensors) != _shapes(first.tensors):
            raise CheckpointError(f"{model} has other tensors than {models[0]}; give models of one shape.")
    means = {
        name: torch.stack([checkpoint.tensors[name].double() for checkpoint in checkpoints])
        .mean(dim=0)
        .float()
        for name in first.tensors
    }
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, means, first.config)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    arguments = parser.parse_args()
    average(arguments.models, arguments.out)


if __name__ == "__main__":
    main()
