"""Make the training list of m2d-mini-tags: clips whose names state their class, by the table ``tags.csv``.

    python recipes/m2d-mini/tags.py DATA --packages pretrain=unpacked packages=packages/unpacked \
        --made speech notes --out DATA/tags.csv

``tags.csv`` has rows of ``package,path,labels``: two regular expressions, for the whole name of a package and
for a part of the path of a file in it (without suffix, ignoring case), and class names of AudioSet separated
by ';'. The first matching row decides. ``-`` means that the file has none of the classes (``NONE`` in the
list). Files without a label or a row are uncertain and skipped. Parents of a class (``tag_parents.csv``) are
added.
``tag_packages.csv`` states the split of each package, so no package is in two splits. A recording that also
occurs in a package of a later split, under any name, is skipped (``alike.py``). Few clips per package and
labels are used, and few parts of a long file.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from alike import alike
from corpus import CHECKSUM_LENGTH, original_paths, parse_arguments, read_manifest

from m2d_hub.pretrained.published_names import AUDIOSET_LABELS

HERE = Path(__file__).parent
NONE = "none of these"
SPLITS = ("train", "valid", "test")
with (HERE / "tag_parents.csv").open(newline="", encoding="utf-8") as _lines:
    PARENTS = {row["class"]: row["parent"] for row in csv.DictReader(_lines)}
SHORTEST_S = 0.1
PART_S = 10.0
SILENT = 1e-3  # maximum amplitude of a silent clip
MAX_PARTS = 3  # per file; music: 1
MAX_CLIPS = {"train": 60, "valid": 30, "test": 30}  # per package and labels


@dataclass(frozen=True)
class Clip:
    """A candidate file."""

    file: str  # relative to DATA
    package: str  # or the program that made it
    path: str  # path in the package
    seconds: float


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    package: re.Pattern[str]
    path: re.Pattern[str]
    labels: tuple[str, ...] | None  # None: uncertain

    def matches(self, clip: Clip) -> bool:
        """Return whether the row applies to a clip."""
        return bool(self.package.fullmatch(clip.package) and self.path.search(clip.path))


def read_rules(path: Path) -> list[Rule]:
    """Return the rows of the table in order.

    Raises:
        SystemExit: A label is not a class of AudioSet.
    """
    rules = []
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            labels = tuple(filter(None, row["labels"].split(";")))
            if unknown := set(labels) - set(AUDIOSET_LABELS) - {"-"}:
                raise SystemExit(f"{path}: {sorted(unknown)} are not classes of AudioSet.")
            package = row["package"] if row["package"] != "*" else ".*"
            rules.append(Rule(re.compile(package), re.compile(row["path"], re.IGNORECASE), labels or None))
    return rules


def read_splits(path: Path) -> dict[str, str]:
    """Return the split of each package."""
    with path.open(newline="", encoding="utf-8") as lines:
        return {row["package"]: row["split"] for row in csv.DictReader(lines)}


def package_clips(data: Path, folders: dict[str, str]) -> Iterator[Clip]:
    """Yield files of packages, by folder of the manifest and folder of unpacked packages."""
    for folder, unpacked in folders.items():
        paths = original_paths(data / unpacked)
        for row in read_manifest(data, folder):
            package = row["label"]
            inside = paths[package, Path(row["file"]).stem[-CHECKSUM_LENGTH:]].with_suffix("")
            path = inside.as_posix().removeprefix(package)
            yield Clip(row["file"], package, path, float(row["seconds"]))


def made_clips(data: Path, folders: list[str]) -> Iterator[Clip]:
    """Yield made audio; its package is the engine or the soundfont."""
    for folder in folders:
        for row in read_manifest(data, folder):
            package, path = row["file"].removeprefix(f"{folder}/audio/").split("/", 1)
            yield Clip(row["file"], package, f"/{path}", float(row["seconds"]))


def with_parents(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return labels with their parents."""
    if labels == ("-",):
        return (NONE,)
    found = list(labels)
    for label in found:  # parents are appended to it
        if label in PARENTS and PARENTS[label] not in found:
            found.append(PARENTS[label])
    return tuple(found)


def labelled(clips: Iterator[Clip], rules: list[Rule]) -> dict[tuple[str, tuple[str, ...]], list[Clip]]:
    """Return clips by package and labels, without clips of unknown content."""
    found = defaultdict(list)
    for clip in clips:
        rule = next((rule for rule in rules if rule.matches(clip)), None)
        if rule is not None and rule.labels and clip.seconds >= SHORTEST_S:
            found[clip.package, with_parents(rule.labels)].append(clip)
    return found


def parts(clip: Clip, most: int) -> list[tuple[str, str]]:
    """Return start and end of up to ``most`` parts of a clip; empty for a short clip."""
    if clip.seconds < 1.5 * PART_S:
        return [("", "")]
    count = min(most, int(clip.seconds / PART_S))
    spare = clip.seconds - PART_S
    starts = [spare * (index + 0.5) / count for index in range(count)]
    return [(f"{start:.2f}", f"{start + PART_S:.2f}") for start in starts]


def list_rows(
    found: dict[tuple[str, tuple[str, ...]], list[Clip]], splits: dict[str, str]
) -> list[dict[str, str]]:
    """Return rows of the list: some clips per package and labels, drawn by checksums of their names."""
    rows = []
    for (package, labels), clips in found.items():
        split = splits[package]
        drawn = sorted(clips, key=lambda clip: hashlib.md5(clip.file.encode()).hexdigest())
        own = [
            {"file": clip.file, "label": ";".join(labels), "split": split, "package": package}
            | {"start_s": start, "end_s": end}
            for clip in drawn
            for start, end in parts(clip, 1 if labels == ("Music",) else MAX_PARTS)
        ]
        rows += own[: MAX_CLIPS[split]]
    return rows


def is_silent(path: Path, row: dict[str, str]) -> bool:
    """Return whether a file, or its part, is silent."""
    with soundfile.SoundFile(path) as sound:
        sound.seek(int(float(row["start_s"] or 0) * sound.samplerate))
        waveform = sound.read(int(1.5 * PART_S * sound.samplerate), dtype="float32")
    return bool(np.abs(waveform).max(initial=0.0) < SILENT)


def without_silent(data: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows without silent clips, except those without a class."""
    return [row for row in rows if row["label"] == NONE or not is_silent(data / row["file"], row)]


def without_alike(data: Path, rows: list[dict[str, str]], made: list[str]) -> list[dict[str, str]]:
    """Return rows whose recording is in no later split; made audio and long files are not compared."""
    compared = [row for row in rows if not row["start_s"] and row["file"].split("/")[0] not in made]
    dropped = set()
    for place, split in enumerate(SPLITS[:-1]):
        files = [row["file"] for row in compared if row["split"] == split]
        later = [row["file"] for row in compared if row["split"] in SPLITS[place + 1 :]]
        found = alike([data / file for file in files], [data / file for file in later])
        dropped |= {files[index] for index in found}
    return [row for row in rows if row["file"] not in dropped]


def counts_table(rows: list[dict[str, str]]) -> str:
    """Return Markdown: clips and packages of each class, per split."""
    clips: Counter[tuple[str, str]] = Counter()
    packages: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for label in row["label"].split(";"):
            clips[label, row["split"]] += 1
            packages[label, row["split"]].add(row["package"])
    lines = ["| class | " + " | ".join(f"{split} (packages)" for split in SPLITS) + " |", "|---|---|---|---|"]
    for label in sorted({label for label, _ in clips}):
        cells = [f"{clips[label, split]} ({len(packages[label, split])})" for split in SPLITS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the list and print its size."""
    arguments = parse_arguments(__doc__)
    folders = arguments.packages
    clips = [*package_clips(arguments.data, folders), *made_clips(arguments.data, arguments.made)]
    found = labelled(iter(clips), read_rules(HERE / "tags.csv"))
    rows = list_rows(found, read_splits(HERE / "tag_packages.csv"))
    rows = without_silent(arguments.data, rows)
    rows = without_alike(arguments.data, rows, arguments.made)
    with arguments.out.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, ["file", "label", "split", "package", "start_s", "end_s"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} clips of {len({package for package, _ in found})} packages\n")
    print(counts_table(rows))


if __name__ == "__main__":
    main()
