"""Tar shards (WebDataset's layout): written in sequence, read at random through an index of byte ranges.

Random access keeps shuffling exact and a resumed run identical, which a stream with a shuffle buffer cannot.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.errors import ConfigError
from m2d_hub.files import replacing

INDEX_NAME = "index.csv"
CLIP_SUFFIXES = (*sorted(AUDIO_SUFFIXES), ".npy", ".jpg", ".jpeg", ".png", ".webp", ".bmp")
FEATURES_SUFFIX = ".features.npy"


@dataclass(frozen=True)
class ShardMember:
    """One clip inside a tar shard, with byte ranges of its data and of its features."""

    shard: str
    name: str
    offset: int
    size: int
    label: str = ""
    caption: str = ""
    features_offset: int = 0
    features_size: int = 0


def expand_pattern(pattern: str) -> list[str]:
    """Shards that a pattern with ``{000000..000009}`` or ``*`` names.

    Raises:
        ConfigError: The pattern is no tar pattern, or a shard is missing.
    """
    import braceexpand

    expanded = list(braceexpand.braceexpand(pattern))
    shards = sorted(path for part in expanded for path in (glob.glob(part) if "*" in part else [part]))
    if not pattern.endswith(".tar"):
        raise ConfigError(f"{pattern} is neither a .csv, a folder, nor a pattern of .tar shards.")
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing or not shards:
        raise ConfigError(f"{pattern}: {missing[:3] or 'no shard'} not found.")
    return shards


def index_shards(shards: Iterable[str]) -> list[ShardMember]:
    """Reads the headers of tar shards.

    Labels come from a clip's ``.json`` (``label`` or ``labels``, ``caption``) or ``.txt`` (its caption).

    Raises:
        ConfigError: A shard is no tar file.
    """
    members: list[ShardMember] = []
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                members += _index_shard(shard, tar)
        except tarfile.TarError as error:
            raise ConfigError(f"{shard} is not a readable tar shard: {error}.") from error
    return members


def _index_shard(shard: str, tar: tarfile.TarFile) -> list[ShardMember]:
    clips: dict[str, tarfile.TarInfo] = {}
    features: dict[str, tarfile.TarInfo] = {}
    notes: dict[str, dict[str, str]] = {}
    for info in tar:
        folder, base = os.path.split(info.name)
        key = os.path.join(folder, base.split(".")[0])
        if base.endswith(FEATURES_SUFFIX):
            features[key] = info
        elif base.lower().endswith(CLIP_SUFFIXES):
            clips[key] = info
        elif base.endswith((".json", ".txt")):
            content = tar.extractfile(info)
            notes.setdefault(key, {}).update(_read_note(base, content.read() if content else b""))
    return [
        ShardMember(
            shard=shard,
            name=info.name,
            offset=info.offset_data,
            size=info.size,
            features_offset=features[key].offset_data if key in features else 0,
            features_size=features[key].size if key in features else 0,
            **notes.get(key, {}),
        )
        for key, info in clips.items()
    ]


def _read_note(base: str, content: bytes) -> dict[str, str]:
    if base.endswith(".txt"):
        return {"caption": content.decode("utf-8").strip()}
    values = json.loads(content)
    labels = values.get("label", values.get("labels", ""))
    label = ";".join(map(str, labels)) if isinstance(labels, list) else str(labels)
    return {"label": label, "caption": str(values.get("caption", ""))}


def write_index(path: Path, members: Iterable[ShardMember]) -> None:
    """Writes the members' table, with shard names relative to its folder."""
    names = [field.name for field in dataclasses.fields(ShardMember)]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, names)
        writer.writeheader()
        for member in members:
            writer.writerow({**dataclasses.asdict(member), "shard": os.path.basename(member.shard)})


def read_index(path: Path, shards: Iterable[str]) -> list[ShardMember]:
    """Members of ``shards`` in the table that :func:`write_index` wrote."""
    wanted = {os.path.basename(shard): shard for shard in shards}
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            ShardMember(
                shard=wanted[row["shard"]],
                name=row["name"],
                offset=int(row["offset"]),
                size=int(row["size"]),
                label=row["label"],
                caption=row["caption"],
                features_offset=int(row["features_offset"]),
                features_size=int(row["features_size"]),
            )
            for row in csv.DictReader(lines)
            if row["shard"] in wanted
        ]
