"""The command line: ``m2d-mini tag FILE...`` and ``m2d-mini embed FILE... --out OUT.npz``."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from m2d_mini.audio import AudioError
from m2d_mini.model import encode_clip, tag


def main() -> int:
    """Run the command; the exit status is 3 if a file could not be read."""
    parser = argparse.ArgumentParser(description="Tag and embed audio files with m2d-mini.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("tag", "print the most likely classes"), ("embed", "write embeddings")):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("files", nargs="+", metavar="FILE")
        if name == "tag":
            command.add_argument("--top", type=int, default=5, metavar="K", help="tags per file [5]")
        else:
            command.add_argument("--out", required=True, metavar="OUT.npz", help="arrays file and embedding")
    arguments = parser.parse_args()
    done, embeddings = [], []
    for file in arguments.files:
        try:
            if arguments.command == "embed":
                embeddings.append(encode_clip(file)[0])
            else:
                [tags] = tag(file, top_k=arguments.top)
                print(_printable(file))
                for found in tags:
                    print(f"  {found.score:.3f}  {found.label}")
                if not tags:
                    print("  silence")
            done.append(file)
        except AudioError as error:
            print(f"Error: {_printable(str(error))}", file=sys.stderr)
    if embeddings:
        np.savez(arguments.out, file=np.array(done), embedding=np.stack(embeddings))
        print(f"Wrote {arguments.out}: {len(done)} embeddings.")
    return 0 if len(done) == len(arguments.files) else 3


def _printable(text: str) -> str:
    """Return text with control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


if __name__ == "__main__":
    sys.exit(main())
