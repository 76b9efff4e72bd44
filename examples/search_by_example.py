"""Search by example: which sounds of a folder are most like this one?

    python examples/search_by_example.py tests/data tests/data/speech_it_1.wav

Embeddings are kept in a file: searched again, only sounds that are new in the folder are embedded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import m2d_hub


def main() -> None:
    """Prints the sounds nearest to the query."""
    args = parse_arguments()
    if not args.folder.is_dir():
        sys.exit(f"Error: {args.folder} is no folder.")
    summary = m2d_hub.embed_files(args.folder, args.out, model=args.model, progress=True)
    if summary.failed:
        print(f"Files that cannot be read: {summary.failed}, see {summary.errors_file}", file=sys.stderr)

    print(f"similarity to {args.query}")
    for match in m2d_hub.search(args.query, args.out, top_k=args.top):
        print(f"{match.score:6.3f}  {match.file}")


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="sounds to search in, at any depth")
    parser.add_argument("query", type=Path, help="the sound to search by")
    parser.add_argument("--model", default="m2d-mini", help="of `m2d-hub list`, or a folder [%(default)s]")
    parser.add_argument("--out", type=Path, default="embeddings.npz", help="keeps them [%(default)s]")
    parser.add_argument("--top", type=int, default=5, help="how many sounds to show [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (m2d_hub.M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
