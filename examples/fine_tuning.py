"""Fine-tuning: train a model of your own classes on labelled clips, and tag a new clip with it.

    python examples/fine_tuning.py examples/clips.csv tests/data/speech_en_1.wav --out runs/tuned --epochs 20

The list has the columns file, label and split (train, valid, test, or folds). If frozen features are better
on the validation clips, only a linear layer is trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2d_training import finetune

from m2d_hub import M2DError, load_model


def main() -> None:
    """Fine-tune, print the test result, and tag the new clip."""
    args = parse_arguments()
    if not args.clip.is_file():
        sys.exit(f"Error: {args.clip} does not exist.")
    quick = {"epochs": args.epochs, "warmup_epochs": args.epochs / 10, "min_steps": 0} if args.epochs else {}
    # "small" is the preset for some dozens to some thousands of clips.
    result = finetune("small", model=args.model, data=args.data, out=args.out, **quick)

    clips = result.report["test_clips"]
    print(f"{result.metric} {result.interval} on {clips} test clips. Report: {args.out}")
    print(f"Tags of {args.clip} with {result.model}:")
    for tag in load_model(result.model).classify(args.clip)[0]:
        print(f"{tag.score:6.3f}  {tag.label}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="CSV with file (relative to the CSV), label and split")
    parser.add_argument("clip", type=Path, help="a new clip to tag")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, resumed if it exists")
    parser.add_argument("--model", default="m2d-mini", help="name or folder of a model [%(default)s]")
    parser.add_argument("--epochs", type=int, help="number of epochs for a quick test [the preset's]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
