"""The list that m2d-mini is pre-trained on, from the free audio packages of a ``manifest.csv``.

    python benchmarks/mini/corpus.py DATA/pretrain --out DATA/pretrain/corpus.csv

A file is listed once per 10 s, so that an hour of music counts like an hour of short sounds; each listing
is another random crop. The label is the package, for runs with an offline label network. Packages that a dev
task tells apart share one label, or the labels would give the task's answers away. Prints mean and standard
deviation of the corpus's log-mel values, which the preset holds.
"""

from __future__ import annotations

import argparse
import csv
import random
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


def label_of(package: str) -> str:
    """The package, or the name that it shares with its like."""
    return next((common for prefix, common in MERGED.items() if package.startswith(prefix)), package)


def list_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of ``file`` and ``label``, long files several times."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        return [
            {"file": row["file"], "label": label_of(row["label"])}
            for row in csv.DictReader(lines)
            for _ in range(max(1, round(float(row["seconds"]) / SECONDS_PER_ROW)))
        ]


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
    labels = len({row["label"] for row in rows})
    print(f"{len(rows)} rows, {labels} labels; log-mel mean {mean:.2f}, std {std:.2f}")


if __name__ == "__main__":
    main()
