"""Print the packages of a corpus as the Markdown tables of data.md, from the ``sources.csv`` of its folders.

python recipes/m2d-mini/sources.py DATA/pretrain DATA/packages DATA/notes DATA/scores DATA/speech
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

LICENCES = {  # licences of copyright files without fields
    "csmash-demosong": "EFF Open Audio License 1.0",
    "festvox-kallpc16k": "Festvox",
    "festvox-kdlpc16k": "Festvox",
    "fretsonfire-songs-sectoid": "MIT",
    "mazeofgalious-data": "GPL",
    "noiz2sa-data": "BSD-2-clause",
    "nyquist": "BSD-3-clause",
    "rrootage-data": "BSD-2-clause",
    "starvoyager-data": "BSD-2-clause",
}


def read_sources(folder: Path) -> list[dict[str, str]]:
    """Read rows of ``package,version,hours,licences``."""
    with (folder / "sources.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def table(rows: list[dict[str, str]]) -> str:
    """Return Markdown: one row per package."""
    lines = ["| package | version | hours | licences |", "|---|---|---|---|"]
    for row in rows:
        licences = row["licences"].replace(" | ", ", ") or LICENCES[row["package"]]
        version = row["version"].replace("%3a", ":")
        lines.append(f"| {row['package']} | {version} | {float(row['hours']):.2f} | {licences} |")
    return "\n".join(lines)


def main() -> None:
    """Print one section per folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders with sources.csv")
    for folder in parser.parse_args().folders:
        rows = read_sources(folder)
        hours = sum(float(row["hours"]) for row in rows)
        print(f"\n## {folder.name}: {len(rows)} packages, {hours:.1f} h\n\n{table(rows)}")


if __name__ == "__main__":
    main()
