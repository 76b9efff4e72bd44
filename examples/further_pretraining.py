"""Further pre-training: make a model more familiar with your own sounds, without any labels.

    python examples/further_pretraining.py tests/data --out runs/further --epochs 3

Stopped and started again, a run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2d_training import pretrain

from m2d_hub import M2DError, embed_files


def main() -> None:
    """Pre-trains from the model's weights on, and embeds the sounds with the result."""
    args = parse_arguments()
    model = pretrain(
        args.preset,
        data=args.folder,
        out=args.out,
        start=args.model,
        offline=None,  # nothing but the sounds to learn from
        start_parts="encoder",  # weights for inference have no predictor: it starts afresh
        target_start="encoder",  # and the target encoder as a copy of the encoder
        epochs=args.epochs,
        warmup_epochs=args.epochs / 10,
        batch_size=args.batch_size,
    ).model

    embeddings = args.out / "embeddings.npz"
    embed_files(args.folder, embeddings, model=model)
    print(f"The model is in {model}, what it makes of your sounds in {embeddings}.")
    print(f"Losses of all steps, and their plots: {args.out}")


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", help="your sounds, at any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, resumed if it exists")
    parser.add_argument("--model", default="m2d-mini", help="to start from [%(default)s]")
    parser.add_argument("--preset", default="m2d-mini", help="of the model's sizes [%(default)s]")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the sounds [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=32, help="sounds of one step [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
