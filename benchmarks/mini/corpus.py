"""The list that m2d-mini is pre-trained on, from the free audio packages of a ``manifest.csv``.

    python benchmarks/mini/corpus.py DATA/pretrain --out DATA/pretrain/corpus.csv

A file is listed once per 10 s, so that an hour of music counts like an hour of short sounds; each listing
is another random crop. The labels, for runs with an offline label network, are the package and those words of
the file's name that several files share. Packages that a dev task is made of give no words, and those that a
task tells apart share one label, or the labels would give the task's answers away. Prints mean and standard
deviation of the corpus's log-mel values, which the preset holds.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from collections import Counter
from pathlib import Path

import soundfile
import torch

from m2d_hub.config import FrontendConfig
from m2d_hub.frontend import LogMelFrontend

SECONDS_PER_ROW = 10.0
SAMPLED_ROWS = 1500  # for the statistics
SAMPLED_S = 2.0  # of each
MERGED = {  # prefixes of packages whose languages or voices a dev task tells apart: one label for all
    "asterisk-core": "asterisk-core",
    "asterisk-prompt": "asterisk-core",
    "fillets-ng-data": "fillets-ng-data",
}
WORDLESS = ("asterisk-", "fillets-ng-data", "gcin-voice", "sonic-pi", "ufoai-sound")  # of the dev tasks
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
FILES_PER_WORD = 8  # at least


def package_label(package: str) -> str:
    """The package, or the name that it shares with its like."""
    return next((common for prefix, common in MERGED.items() if package.startswith(prefix)), package)


def name_words(row: dict[str, str]) -> set[str]:
    """Words of a file's name, which is followed by two checksums."""
    if row["label"].startswith(WORDLESS):
        return set()
    name = "_".join(Path(row["file"]).stem.split("_")[:-2])
    return {word.lower() for word in WORD.findall(name)}


def list_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of ``file`` and ``label``, long files several times."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        files = list(csv.DictReader(lines))
    counts = Counter(word for row in files for word in name_words(row))
    rows = []
    for row in files:
        shared = sorted(word for word in name_words(row) if counts[word] >= FILES_PER_WORD)
        label = ";".join([package_label(row["label"]), *(f"word:{word}" for word in shared)])
        listings = max(1, round(float(row["seconds"]) / SECONDS_PER_ROW))
        rows += [{"file": row["file"], "label": label}] * listings
    return rows


def statistics(folder: Path, rows: list[dict[str, str]]) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel values of random crops."""
    rng = random.Random(0)
    frontend = LogMelFrontend(FrontendConfig())
    values = []
    for row in rng.sample(rows, min(SAMPLED_ROWS, len(rows))):
        with soundfile.SoundFile(folder / row["file"]) as sound:
            spare = max(0, sound.frames - int(SAMPLED_S * sound.samplerate))
            sound.seek(rng.randint(0, spare))
            waveform = sound.read(int(SAMPLED_S * sound.samplerate), dtype="float32")
        values.append(frontend.log_mel(torch.from_numpy(waveform)[None]).flatten())
    together = torch.cat(values).double()
    return float(together.mean()), float(together.std())


def main() -> None:
    """Writes the list and prints what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with manifest.csv")
    parser.add_argument("--out", type=Path, required=True, help="CSV inside that folder")
    arguments = parser.parse_args()
    rows = list_rows(arguments.data)
    with arguments.out.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, ["file", "label"])
        writer.writeheader()
        writer.writerows(rows)
    mean, std = statistics(arguments.data, rows)
    labels = len({label for row in rows for label in row["label"].split(";")})
    print(f"{len(rows)} rows, {labels} labels; log-mel mean {mean:.2f}, std {std:.2f}")


if __name__ == "__main__":
    main()
