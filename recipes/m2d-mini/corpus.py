"""Make the pre-training list of m2d-mini from several folders with a ``manifest.csv``.

    python corpus.py DATA --packages pretrain=unpacked packages=packages/unpacked \
        --made speech notes scores --out DATA/corpus.csv

Folder names are relative to DATA. A file is listed once per 10 s, so that an hour of music has the same
weight as an hour of short sounds; each listing is another random crop. The labels, for runs with an offline
label network, are:

- for packages: the package; its kind (``kind:music``, ``kind:effects``, ``kind:speech``) if it has only one;
  the language of speech in one language; and names and words of files and folders that several files share;
- for made audio: the labels of its manifest (``language:cs``, ``voice:espeak-ng-f2``, ``instrument:brass``,
  ``pitch:C#``, ``octave:3``, ...), without labels of few rows.

Packages of the dev tasks get no label that answers a task: no words and no languages. Telephone prompts only
get the file name, which states what is said, while the task asks for the speaker. Packages that a task
distinguishes share one label. Instrument families of made notes are labels, and the dev task fluid_family
asks for families (of another soundfont): say so next to its figure. Prints the mean and standard deviation of
the log-mel values of the corpus, which the configuration contains.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import soundfile
import torch
from package_table import MIXED, PACKAGES, SCORES

from m2d_hub.config import FrontendConfig
from m2d_hub.nn.frontend import LogMelFrontend

SECONDS_PER_ROW = 10.0
SAMPLED_ROWS = 2000  # for the statistics
SAMPLED_S = 2.0  # length of a crop
MERGED = {  # prefixes of packages that a dev task distinguishes: one label for all
    "asterisk-core": "asterisk-core",
    "asterisk-prompt": "asterisk-core",
    "fillets-ng-data": "fillets-ng-data",
}
WORDLESS = ("fillets-ng-data", "gcin-voice", "sonic-pi", "ufoai-sound", "ufoai-data")  # packages of dev tasks
PROMPTS = "asterisk-"  # packages whose file names state what is said
SPEECH = ("asterisk-core", "asterisk-prompt", "fillets-ng-data", "gcin-voice", "festvox-ru", "klettres-data")
MUSIC = ("asc-music", "asterisk-moh", "hyperrogue-music", "ufoai-music", "warzone2100-music")
EFFECTS = ("ufoai-sound", "bucklespring-data", "sound-icons", "lomiri-sounds")
LANGUAGES = {"festvox-ru": "ru"}  # packages in one language that are not in a dev task
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
FILES_PER_WORD = 8  # minimum
ROWS_PER_LABEL = 10  # minimum
CHECKSUM_LENGTH = 6


def package_label(package: str) -> str:
    """Return the package, or the name that it shares with similar packages."""
    return next((common for prefix, common in MERGED.items() if package.startswith(prefix)), package)


def package_labels(package: str) -> list[str]:
    """Return the package, and its kind and language if they are known."""
    kind = PACKAGES.get(package, (MIXED, ""))[0]
    for known, prefixes in (("speech", SPEECH), ("music", MUSIC), ("effects", EFFECTS)):
        if package.startswith(prefixes):
            kind = known
    labels = [package_label(package)]
    if kind not in (MIXED, SCORES):
        labels.append(f"kind:{kind}")
    if package in LANGUAGES:
        labels.append(f"language:{LANGUAGES[package]}")
    return labels


def original_paths(unpacked: Path) -> dict[tuple[str, str], Path]:
    """Return paths inside the packages, by package and checksum (the end of a prepared file's name)."""
    paths = {}
    for path in unpacked.rglob("*.*"):
        inside = path.relative_to(unpacked)
        checksum = hashlib.md5(f"{inside}0.00".encode()).hexdigest()[:CHECKSUM_LENGTH]
        paths[inside.parts[0], checksum] = inside
    return paths


def path_words(package: str, path: Path) -> set[str]:
    """Return names and words of a file and its folders, without those that answer a dev task."""
    if package.startswith(WORDLESS):
        return set()
    *folders, name = path.relative_to(package).parts
    if package.startswith(PROMPTS):
        return {Path(name).stem.lower()}
    names = [*folders, Path(name).stem]
    return {word.lower() for part in names for word in [part, *WORD.findall(part)]}


def distinctive_words(words: list[set[str]]) -> set[str]:
    """Return words of several but not most files; of words that always occur together, only the first."""
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


def read_manifest(data: Path, folder: str) -> list[dict[str, str]]:
    """Read the manifest of a folder, with files relative to ``data``."""
    with (data / folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        return [row | {"file": f"{folder}/{row['file']}"} for row in csv.DictReader(lines)]


def package_rows(data: Path, folders: dict[str, str]) -> list[tuple[dict[str, str], list[str]]]:
    """Yield rows of files from packages, with their labels.

    Args:
        data: Parent of all folders.
        folders: Where the packages were unpacked, by the folder of the manifest.
    """
    rows, words = [], []
    for folder, unpacked in folders.items():
        paths = original_paths(data / unpacked)
        for row in read_manifest(data, folder):
            rows.append(row)
            key = row["label"], Path(row["file"]).stem[-CHECKSUM_LENGTH:]
            words.append(path_words(row["label"], paths[key]))
    shared = distinctive_words(words)
    return [
        (row, package_labels(row["label"]) + [f"word:{word}" for word in sorted(own & shared)])
        for row, own in zip(rows, words, strict=True)
    ]


def made_rows(data: Path, folders: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Yield rows of made audio, with their labels."""
    return [(row, row["label"].split(";")) for folder in folders for row in read_manifest(data, folder)]


def list_rows(rows: list[tuple[dict[str, str], list[str]]]) -> list[dict[str, str]]:
    """Return rows of ``file`` and ``label``: long files several times, without labels of few rows."""
    listed = []
    for row, labels in rows:
        listings = max(1, round(float(row["seconds"]) / SECONDS_PER_ROW))
        listed += [(row["file"], labels)] * listings
    counts = Counter(label for _, labels in listed for label in set(labels))
    kept = {label for label, count in counts.items() if count >= ROWS_PER_LABEL}
    return [
        {"file": file, "label": ";".join([labels[0], *(own for own in labels[1:] if own in kept)])}
        for file, labels in listed
    ]


def statistics(folder: Path, rows: list[dict[str, str]]) -> tuple[float, float]:
    """Return the mean and standard deviation of the log-mel values of random crops."""
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


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line; ``packages`` maps folders to unpacked packages."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="parent of all folders")
    parser.add_argument("--packages", nargs="+", default=[], help="folder=folder of its unpacked packages")
    parser.add_argument("--made", nargs="*", default=[], help="folders of made audio")
    parser.add_argument("--out", type=Path, required=True, help="CSV in DATA")
    arguments = parser.parse_args()
    arguments.packages = dict(pair.split("=", 1) for pair in arguments.packages)
    return arguments


def main() -> None:
    """Write the list and print its size."""
    arguments = parse_arguments(__doc__)
    folders = arguments.packages
    rows = package_rows(arguments.data, folders) + made_rows(arguments.data, arguments.made)
    hours = sum(float(row["seconds"]) for row, _ in rows) / 3600
    listed = list_rows(rows)
    with arguments.out.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, ["file", "label"])
        writer.writeheader()
        writer.writerows(listed)
    mean, std = statistics(arguments.data, listed)
    labels = len({label for row in listed for label in row["label"].split(";")})
    print(f"{len(rows)} files, {hours:.2f} h, {len(listed)} rows, {labels} labels; ", end="")
    print(f"log-mel mean {mean:.2f}, std {std:.2f}")


if __name__ == "__main__":
    main()
