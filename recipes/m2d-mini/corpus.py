"""The list that m2d-mini is pre-trained on, from the free audio packages of a ``manifest.csv``.

    python recipes/m2d-mini/corpus.py DATA/pretrain --unpacked DATA/unpacked --out DATA/pretrain/corpus.csv

A file is listed once per 10 s, so that an hour of music counts like an hour of short sounds; each listing is
another random crop. The labels, for runs with an offline label network, are the package, and those names and
words of the file and its folders in the package that several files share. Nothing that answers a dev task is
a label: packages that a task is made of give no words; of telephone prompts only the file's name is taken,
which is what is said, while the task asks who says it; and packages that a task tells apart share one label.
Prints mean and standard deviation of the corpus's log-mel values, which the preset holds.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import re
from collections import defaultdict
from pathlib import Path

import soundfile
import torch

from m2d_hub.config import FrontendConfig
from m2d_hub.nn.frontend import LogMelFrontend

SECONDS_PER_ROW = 10.0
SAMPLED_ROWS = 1500  # for the statistics
SAMPLED_S = 2.0  # of each
MERGED = {  # prefixes of packages whose languages or voices a dev task tells apart: one label for all
    "asterisk-core": "asterisk-core",
    "asterisk-prompt": "asterisk-core",
    "fillets-ng-data": "fillets-ng-data",
}
WORDLESS = ("fillets-ng-data", "gcin-voice", "sonic-pi", "ufoai-sound")  # of dev tasks
PROMPTS = "asterisk-"  # packages whose file names say what is said
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
FILES_PER_WORD = 6  # at least
CHECKSUM_LENGTH = 6


def package_label(package: str) -> str:
    """The package, or the name that it shares with its like."""
    return next((common for prefix, common in MERGED.items() if package.startswith(prefix)), package)


def original_paths(unpacked: Path) -> dict[tuple[str, str], Path]:
    """Paths inside the packages, by package and the checksum that ends a prepared file's name."""
    paths = {}
    for path in unpacked.rglob("*.*"):
        inside = path.relative_to(unpacked)
        checksum = hashlib.md5(f"{inside}0.00".encode()).hexdigest()[:6]
        paths[inside.parts[0], checksum] = inside
    return paths


def path_words(package: str, path: Path) -> set[str]:
    """Names and words of a file and its folders, of which none answers a dev task."""
    if package.startswith(WORDLESS):
        return set()
    *folders, name = path.relative_to(package).parts
    if package.startswith(PROMPTS):
        return {Path(name).stem.lower()}
    names = [*folders, Path(name).stem]
    return {word.lower() for part in names for word in [part, *WORD.findall(part)]}


def telling_words(words: list[set[str]]) -> set[str]:
    """Words of several files but not of most, and of those that always come together the first."""
    files: dict[str, set[int]] = defaultdict(set)
    for index, own in enumerate(words):
        for word in own:
            files[word].add(index)
    most = sum(map(bool, words)) / 2
    by_files = {
        frozenset(where): word
        for word, where in sorted(files.items(), reverse=True)
        if FILES_PER_WORD <= len(where) < most
    }
    return set(by_files.values())


def list_rows(folder: Path, unpacked: Path) -> list[dict[str, str]]:
    """Rows of ``file`` and ``label``, long files several times."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        files = list(csv.DictReader(lines))
    paths = original_paths(unpacked)
    words = [
        path_words(row["label"], paths[row["label"], Path(row["file"]).stem[-CHECKSUM_LENGTH:]])
        for row in files
    ]
    told = telling_words(words)
    rows = []
    for row, own in zip(files, words, strict=True):
        label = ";".join([package_label(row["label"]), *(f"word:{word}" for word in sorted(own & told))])
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
    parser.add_argument("--unpacked", type=Path, required=True, help="folder of the packages' files")
    parser.add_argument("--out", type=Path, required=True, help="CSV inside that folder")
    arguments = parser.parse_args()
    rows = list_rows(arguments.data, arguments.unpacked)
    with arguments.out.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, ["file", "label"])
        writer.writeheader()
        writer.writerows(rows)
    mean, std = statistics(arguments.data, rows)
    labels = len({label for row in rows for label in row["label"].split(";")})
    print(f"{len(rows)} rows, {labels} labels; log-mel mean {mean:.2f}, std {std:.2f}")


if __name__ == "__main__":
    main()
