"""Search by example: find the sounds of a folder that are most similar to a sound.

    python examples/search_by_example.py tests/data tests/data/speech_it_1.wav

Embeddings are stored in a file. The next search embeds only new sounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import m2d_hub


def main() -> None:
    """Print the sounds most similar to the query."""
    args = parse_arguments()
    if not args.folder.is_dir():
        sys.exit(f"Error: {args.folder} is not a folder.")
    summary = m2d_hub.embed_files(args.folder, args.out, model=args.model, progress=True)
    if summary.failed:
        print(f"{summary.failed} files cannot be read, see {summary.errors_file}", file=sys.stderr)

    print(f"similarity to {args.query}")
    for match in m2d_hub.search(args.query, args.out, top_k=args.top):
        print(f"{match.score:6.3f}  {match.file}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to search, at any depth")
    parser.add_argument("query", type=Path, help="sound to search for")
    parser.add_argument("--model", default="m2d-mini", help="name or folder of a model [%(default)s]")
    parser.add_argument("--out", type=Path, default="embeddings.npz", help="embeddings file [%(default)s]")
    parser.add_argument("--top", type=int, default=5, help="number of results [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (m2d_hub.M2DError, OSError) as error:
        sys.exit(f"Error: {error}")
