"""Tar shards (WebDataset's layout): clips are read at random, through the byte ranges that the headers tell.

Random access keeps shuffling exact and a resumed run identical, which a stream with a shuffle buffer cannot.
"""

from __future__ import annotations

import glob
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

from m2d_hub.audio import AUDIO_SUFFIXES
from m2d_hub.corpus.shards import Member, members_of
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading, reading_file

from .images import IMAGE_SUFFIXES
from .notes import MAX_BYTES, Note, read_note

CLIP_SUFFIXES = (*sorted(AUDIO_SUFFIXES), ".npy", *IMAGE_SUFFIXES)
NOTE_SUFFIXES = (".json", ".txt")
FEATURES_SUFFIX = ".features.npy"
Thing = TypeVar("Thing")


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
        ConfigError: The pattern is no tar pattern, or names none.
    """
    import braceexpand

    if not pattern.endswith(".tar"):
        raise ConfigError(f"{pattern} is neither a .csv, a folder, nor a pattern of .tar shards.")
    with reading(pattern, "a pattern of shards", "Write {000000..000009} or *.", ConfigError):
        expanded = list(braceexpand.braceexpand(pattern))
    shards = sorted(path for part in expanded for path in (glob.glob(part) if "*" in part else [part]))
    if not shards:
        raise ConfigError(f"{pattern} names no shard: give a pattern of .tar files that are there.")
    return list(dict.fromkeys(shards))


def index_shards(shards: Iterable[str]) -> list[ShardMember]:
    """Reads the headers of tar shards, and the labels and captions in them.

    Each file of audio, each spectrogram and each picture is a clip. What belongs to it (``.json`` with label
    and caption, ``.txt`` with a caption, ``.features.npy``) has its name up to the suffix; or, as WebDataset
    has it, its name up to the first dot, where that is of one clip only or all clips that share it are meant.

    Raises:
        ConfigError: A shard is no tar file, holds a name twice, links, or notes that cannot be read.
    """
    return [member for shard in shards for member in _index_shard(shard)]


@dataclass
class _Contents:
    """What one shard holds."""

    clips: list[Member] = field(default_factory=list)
    notes: dict[str, Note] = field(default_factory=dict)  # by name up to the suffix
    features: dict[str, Member] = field(default_factory=dict)


def _index_shard(shard: str) -> Iterator[ShardMember]:
    way_out = "Make it again, whole and without compression."
    with reading_file(shard, "a tar shard", way_out, ConfigError), open(shard, "rb") as file:
        contents = _read_contents(shard, file)
    stems = [_stem(clip.name) for clip in contents.clips]
    notes, features = _belonging(stems, contents.notes), _belonging(stems, contents.features)
    for clip, stem in zip(contents.clips, stems, strict=True):
        note, feature = notes.get(stem, Note()), features.get(stem)
        yield ShardMember(
            shard=shard,
            name=clip.name,
            offset=clip.offset,
            size=clip.size,
            label=note.label,
            caption=note.caption,
            features_offset=feature.offset if feature else 0,
            features_size=feature.size if feature else 0,
        )


def _read_contents(shard: str, file: BinaryIO) -> _Contents:
    contents = _Contents()
    for member in members_of(file, shard, (*CLIP_SUFFIXES, *NOTE_SUFFIXES)):
        if member.problem:
            raise ConfigError(member.problem)
        name = posixpath.normpath(member.name)
        if is_features(name):
            contents.features[name[: -len(FEATURES_SUFFIX)]] = member
        elif is_clip(name):
            contents.clips.append(member)
        else:
            contents.notes[_stem(name)] = _note(shard, file, member) | contents.notes.get(_stem(name), Note())
    return contents


def _note(shard: str, file: BinaryIO, member: Member) -> Note:
    if member.size > MAX_BYTES:
        raise ConfigError(f"{shard}:{member.name} has {member.size:,} bytes; at most {MAX_BYTES:,} are read.")
    file.seek(member.offset)
    return read_note(f"{shard}:{posixpath.normpath(member.name)}", file.read(member.size))


def is_features(name: str) -> bool:
    """Whether a member is features that were computed beforehand."""
    return name.lower().endswith(FEATURES_SUFFIX)


def is_clip(name: str) -> bool:
    """Whether a member is a clip."""
    return name.lower().endswith(CLIP_SUFFIXES) and not is_features(name) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Whether a member is a file that some programs leave behind."""
    return posixpath.basename(name).startswith(".")


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.normpath(name))[0]


def _key(stem: str) -> str:
    """WebDataset's key: the name up to its first dot."""
    folder, base = posixpath.split(stem)
    return posixpath.join(folder, base.split(".")[0])


def _belonging(stems: list[str], things: dict[str, Thing]) -> dict[str, Thing]:
    """What belongs to each clip, by the clip's name up to its suffix."""
    clips = set(stems)
    clips_of_key = Counter(map(_key, clips))
    by_key: dict[str, Thing] = {}
    for stem, thing in things.items():
        key = _key(stem)
        if stem not in clips and (stem == key or clips_of_key[key] == 1):
            by_key[key] = thing
    found = {stem: things.get(stem, by_key.get(_key(stem))) for stem in clips}
    return {stem: thing for stem, thing in found.items() if thing is not None}
