"""Clips to train on: lists of audio files, tar shards, spectrograms or pictures, with their labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m2d_hub.audio import AUDIO_SUFFIXES, AudioPart
from m2d_hub.corpus.tables import read_table, refuse_empty
from m2d_hub.errors import ConfigError

from .parts import PART_COLUMNS, AudioFile, audio_files
from .shards import INDEX_NAME, ShardMember, expand_pattern, index_shards, read_index

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_SEPARATOR = ";"
STATISTICS_NAME = "statistics.json"

Kind = Literal["audio", "spectrogram", "image"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip: a file of its own, a part of one, or a member of a tar shard."""

    path: AudioFile
    offset: int = 0  # bytes, of a member's data
    size: int = 0  # bytes of a member; 0: a file of its own
    name: str = ""  # of a member, for messages
    label: str = ""  # several are joined by ';'; empty: not known
    caption: str = ""
    features_path: str = ""  # .npy file, or shard, of per-frame features computed beforehand
    features_offset: int = 0
    features_size: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The single labels."""
        return tuple(part.strip() for part in self.label.split(LABEL_SEPARATOR) if part.strip())

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a data set's log-mel values."""

    mean: float
    std: float
    sample_rate: int  # Hz


@dataclass(frozen=True)
class Manifest:
    """All clips of one data set."""

    name: str  # as the user gave it
    kind: Kind
    entries: list[Entry]
    statistics: Statistics | None = None  # where ``m2d-train prepare`` computed them

    def classes(self) -> tuple[str, ...]:
        """All labels in sorted order; AudioSet's own 527 classes where every label is one of them."""
        found = {label for entry in self.entries for label in entry.labels}
        return audioset_classes(found) or tuple(sorted(found))


def audioset_classes(labels: Iterable[str]) -> tuple[str, ...] | None:
    """AudioSet's classes in the published heads' order, if all ``labels`` are among them."""
    from m2d_hub.pretrained.audioset_labels import AUDIOSET_LABELS

    found = set(labels)
    return tuple(AUDIOSET_LABELS) if found and found <= set(AUDIOSET_LABELS) else None


def read_manifest(data: str) -> Manifest:
    """Reads what ``--data`` names.

    Args:
        data: A CSV with a ``file`` column, relative to the CSV, and optional ``label``, ``caption``,
            ``features``, and ``start_s`` and ``end_s`` of a part; a pattern of tar shards
            (``train-{000000..000009}.tar``, ``shards/*.tar``), or a folder of them; or a folder of audio
            files, spectrograms or pictures.

    Raises:
        ConfigError: Nothing is found there, or what is found is of several kinds.
    """
    path = Path(data)
    if path.is_dir():
        shards = sorted(str(shard) for shard in path.glob("*.tar"))
        entries = _read_shards(shards) if shards else _read_folder(path)
    elif path.suffix.lower() == ".csv":
        entries = _read_csv(path)
    else:
        entries = _read_shards(expand_pattern(data))
    if not entries:
        raise ConfigError(f"{data} lists no clips: give a CSV with a 'file' column, tar shards, or a folder.")
    kind = _kind(data, entries)
    if kind != "audio" and any(isinstance(entry.path, AudioPart) for entry in entries):
        raise ConfigError(f"{data} has start_s or end_s for {kind} files; only audio is read in parts.")
    return Manifest(data, kind, entries, _read_statistics(path))


def _read_csv(path: Path) -> list[Entry]:
    rows = read_table(path, ["file"], ["label", "caption", "features", *PART_COLUMNS])
    refuse_empty(path, rows, "file")
    files = audio_files(path, [str(path.parent / row.cells["file"]) for row in rows], rows)
    return [
        Entry(
            path=file,
            label=row.cells["label"],
            caption=row.cells["caption"],
            features_path=str(path.parent / row.cells["features"]) if row.cells["features"] else "",
        )
        for row, file in zip(rows, files, strict=True)
    ]


def _read_folder(folder: Path) -> list[Entry]:
    suffixes = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES, ".npy")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return [Entry(path=str(path)) for path in files]


def _read_shards(shards: list[str]) -> list[Entry]:
    by_folder: dict[Path, list[str]] = {}
    for shard in shards:
        by_folder.setdefault(Path(shard).parent, []).append(shard)
    members: list[ShardMember] = []
    for folder, inside in by_folder.items():
        index = folder / INDEX_NAME
        members += read_index(index, inside) if index.is_file() else index_shards(inside)
    return [_shard_entry(member) for member in members]


def _shard_entry(member: ShardMember) -> Entry:
    return Entry(
        path=member.shard,
        offset=member.offset,
        size=member.size,
        name=member.name,
        label=member.label,
        caption=member.caption,
        features_path=member.shard if member.features_size else "",
        features_offset=member.features_offset,
        features_size=member.features_size,
    )


def _kind(data: str, entries: list[Entry]) -> Kind:
    suffixes = {Path(entry.name or entry.path).suffix.lower() for entry in entries}
    kinds: set[Kind] = set()
    for suffix in suffixes:
        kinds.add("spectrogram" if suffix == ".npy" else "image" if suffix in IMAGE_SUFFIXES else "audio")
    if len(kinds) > 1:
        raise ConfigError(
            f"{data} mixes {' and '.join(sorted(kinds))} files ({', '.join(sorted(suffixes))}): "
            "give one kind."
        )
    return kinds.pop()


def _read_statistics(path: Path) -> Statistics | None:
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".csv" or not (folder / STATISTICS_NAME).is_file():
        return None
    values = json.loads((folder / STATISTICS_NAME).read_text(encoding="utf-8"))
    return Statistics(values["mean"], values["std"], values["sample_rate"])
