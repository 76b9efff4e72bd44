"""Fine-tuning: a model of your own classes from a list of labelled clips, and what it hears in a new one.

    python examples/fine_tuning.py examples/clips.csv tests/data/speech_en_1.wav --out runs/tuned --epochs 20

The list has file, label and split (train, valid, test, or folds). There is nothing to tune; where frozen
features are better on the valid clips, the model stays as it is and only a linear layer is learnt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2d_training import finetune

from m2d_hub import M2DError, load_model


def main() -> None:
    """Fine-tunes, prints how good the model is on the test clips, and tags the new clip."""
    args = parse_arguments()
    if not args.clip.is_file():
        sys.exit(f"Error: {args.clip} does not exist.")
    quick = {"epochs": args.epochs, "warmup_epochs": args.epochs / 10, "min_steps": 0} if args.epochs else {}
    # "small" is for lists from some dozens of clips to some thousands
    result = finetune("small", model=args.model, data=args.data, out=args.out, **quick)

    clips = result.report["test_clips"]
    print(f"{result.metric} {result.interval} on {clips} test clips. Report: {args.out}")
    print(f"{args.clip}, as {result.model} hears it:")
    for tag in load_model(result.model).classify(args.clip)[0]:
        print(f"{tag.score:6.3f}  {tag.label}")


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="CSV with file (relative to it), label and split")
    parser.add_argument("clip", type=Path, help="a new clip to tag")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run, resumed if it exists")
    parser.add_argument("--model", default="m2d-mini", help="of `m2d-hub list`, or a folder [%(default)s]")
    parser.add_argument("--epochs", type=int, help="passes over the list, for a quick look (enough of them)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
