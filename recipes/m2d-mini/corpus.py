"""The list that m2d-mini is pre-trained on, of several folders with a ``manifest.csv``.

    python corpus.py DATA --packages pretrain=unpacked packages=packages/unpacked \\
        --made speech notes scores --out DATA/corpus.csv

Folders are named from DATA. A file is listed once per 10 s, so that an hour of music counts like an hour of
short sounds; each listing is another random crop. The labels, for runs with an offline label network:

- of packages: the package, its kind (``kind:music``, ``kind:effects``, ``kind:speech``) where it holds one
  kind only, the language of speech in one language, and those names and words of the file and its folders in
  the package that several files share;
- of made audio: what its manifest says (``language:cs``, ``voice:espeak-ng-f2``, ``instrument:brass``,
  ``pitch:C#``, ``octave:3``, ...), but for labels of few rows.

Of packages that a development task is made of, nothing that answers it is a label: they give no words nor
languages; of telephone prompts only the file's name is taken, which is what is said, while the task asks who
says it; and packages that a task tells apart share one label. Instrument families of made notes are labels,
and the development task fluid_family asks for families (of another soundfont): say so beside its figure.
Prints mean and standard deviation of the corpus's log-mel values, which the configuration holds.
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
SAMPLED_S = 2.0  # of each
MERGED = {  # prefixes of packages whose languages or voices a dev task tells apart: one label for all
    "asterisk-core": "asterisk-core",
    "asterisk-prompt": "asterisk-core",
    "fillets-ng-data": "fillets-ng-data",
}
WORDLESS = ("fillets-ng-data", "gcin-voice", "sonic-pi", "ufoai-sound", "ufoai-data")  # of dev tasks
PROMPTS = "asterisk-"  # packages whose file names say what is said
SPEECH = ("asterisk-core", "asterisk-prompt", "fillets-ng-data", "gcin-voice", "festvox-ru", "klettres-data")
MUSIC = ("asc-music", "asterisk-moh", "hyperrogue-music", "ufoai-music", "warzone2100-music")
EFFECTS = ("ufoai-sound", "bucklespring-data", "sound-icons", "lomiri-sounds")
LANGUAGES = {"festvox-ru": "ru"}  # of packages in one language that no dev task is made of
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
FILES_PER_WORD = 8  # at least
ROWS_PER_LABEL = 10  # at least
CHECKSUM_LENGTH = 6


def package_label(package: str) -> str:
    """The package, or the name that it shares with its like."""
    return next((common for prefix, common in MERGED.items() if package.startswith(prefix)), package)


def package_labels(package: str) -> list[str]:
    """The package, its kind and its language, as far as they are known."""
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
    """Paths inside the packages, by package and the checksum that ends a prepared file's name."""
    paths = {}
    for path in unpacked.rglob("*.*"):
        inside = path.relative_to(unpacked)
        checksum = hashlib.md5(f"{inside}0.00".encode()).hexdigest()[:CHECKSUM_LENGTH]
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


def read_manifest(data: Path, folder: str) -> list[dict[str, str]]:
    """Rows of a folder's manifest, their files named from ``data``."""
    with (data / folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        return [row | {"file": f"{folder}/{row['file']}"} for row in csv.DictReader(lines)]


def package_rows(data: Path, folders: dict[str, str]) -> list[tuple[dict[str, str], list[str]]]:
    """Rows of packages' files and their labels.

    Args:
        data: Folder of all.
        folders: Where the packages were unpacked, by the folder of the manifest.
    """
    rows, words = [], []
    for folder, unpacked in folders.items():
        paths = original_paths(data / unpacked)
        for row in read_manifest(data, folder):
            rows.append(row)
            key = row["label"], Path(row["file"]).stem[-CHECKSUM_LENGTH:]
            words.append(path_words(row["label"], paths[key]))
    told = telling_words(words)
    return [
        (row, package_labels(row["label"]) + [f"word:{word}" for word in sorted(own & told)])
        for row, own in zip(rows, words, strict=True)
    ]


def made_rows(data: Path, folders: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Rows of made audio and their labels."""
    return [(row, row["label"].split(";")) for folder in folders for row in read_manifest(data, folder)]


def list_rows(rows: list[tuple[dict[str, str], list[str]]]) -> list[dict[str, str]]:
    """Rows of ``file`` and ``label``, long files several times; drops labels of few rows."""
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


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The folders of the corpus; ``packages`` as where they are unpacked, by folder."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of all")
    parser.add_argument("--packages", nargs="+", default=[], help="folder=where its packages are unpacked")
    parser.add_argument("--made", nargs="*", default=[], help="folders of made audio")
    parser.add_argument("--out", type=Path, required=True, help="CSV in DATA")
    arguments = parser.parse_args()
    arguments.packages = dict(pair.split("=", 1) for pair in arguments.packages)
    return arguments


def main() -> None:
    """Writes the list and prints what it holds."""
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
