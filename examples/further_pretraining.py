"""Further pre-training: adapt a model to your own sounds without labels.

    python examples/further_pretraining.py tests/data --out runs/further --epochs 3

Run the same command again to resume an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2d_training import pretrain

from m2d_hub import M2DError, embed_files


def main() -> None:
    """Continue pre-training from existing weights, and embed the sounds with the result."""
    args = parse_arguments()
    model = pretrain(
        args.preset,
        data=args.folder,
        out=args.out,
        start=args.model,
        offline=None,  # no additional task: learn only from the sounds
        start_parts="encoder",  # inference weights have no predictor: initialise it randomly
        target_start="encoder",  # initialise the target encoder from the encoder
        epochs=args.epochs,
        warmup_epochs=args.epochs / 10,
        batch_size=args.batch_size,
    ).model

    embeddings = args.out / "embeddings.npz"
    embed_files(args.folder, embeddings, model=model)
    print(f"Model: {model}\nEmbeddings: {embeddings}")
    print(f"Losses and plots: {args.out}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", help="folder with your sounds, at any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, resumed if it exists")
    parser.add_argument("--model", default="m2d-mini", help="initial weights [%(default)s]")
    parser.add_argument("--preset", default="m2d-mini", help="preset of the same sizes [%(default)s]")
    parser.add_argument("--epochs", type=int, default=20, help="number of epochs [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=32, help="sounds per step [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
