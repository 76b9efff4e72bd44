"""Puts a trained model into the package, in float16.

python recipes/m2d-mini/release.py RUN/export
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from m2d_hub.pretrained.folder import load_checkpoint, save_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "m2d_hub" / "weights" / "m2d-mini"
SOURCE = "pre-trained on free audio packages, see MODEL_CARD.md"


def release(export: Path) -> None:
    """Writes the weights and their configuration where ``load_model("m2d-mini")`` looks."""
    checkpoint = load_checkpoint(export)
    config = dataclasses.replace(checkpoint.config, name="m2d-mini", license="Apache-2.0", source=SOURCE)
    halves = {name: tensor.to(torch.float16) for name, tensor in checkpoint.tensors.items()}
    save_checkpoint(FOLDER, halves, config)


def main() -> None:
    """Releases one export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path)
    release(parser.parse_args().export)
    for path in sorted(FOLDER.iterdir()):
        print(f"{path} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
