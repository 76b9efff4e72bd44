"""Linear evaluation: measure how well a frozen model separates your classes.

    python examples/linear_evaluation.py examples/clips.csv --out runs/evaluation

The list has the columns file, label and split (train, valid, test, or folds).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2d_training import linear_eval

from m2d_hub import M2DError


def main() -> None:
    """Train one linear layer on frozen features, and print the report."""
    args = parse_arguments()
    result = linear_eval(model=args.model, data=args.data, out=args.out)
    report = result.report

    width = max(map(len, report["per_class"]))
    for label, row in report["per_class"].items():
        correct = row.get("recall", row.get("average_precision"))  # None: no test clip with this label
        figure = "" if correct is None else f"{100 * correct:5.1f} %"
        print(f"{label:{width}}  {figure:>7}  of {row['test_clips']} test clips")
    print(f"{result.metric} {result.interval} on {report['test_clips']} test clips")
    print(f"Report, plots and worst clips: {result.out}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="CSV with file (relative to the CSV), label and split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--model", default="m2d-mini", help="name or folder of a model [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
