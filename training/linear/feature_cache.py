"""Features on disk: computed once, written part by part, found again by model, settings and file.

Shapes: N clips, L layers, K features of a clip.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from m2d_hub.audio import AudioPart
from m2d_hub.errors import CheckpointError
from m2d_hub.io import reading_file, replacing

from ..data.parts import AudioFile
from ..evaluation.clip_encoder import ClipEncoder, encode_files

PARTS = "*.safetensors"


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a list of files, read from disk layer by layer."""

    files: Sequence[AudioFile]
    errors: dict[int, str]  # places of files that cannot be read, and why; the others are stored
    computed: int  # files that were encoded now, not found
    _places: dict[int, tuple[Path, int]]  # part and row of each file

    @property
    def num_layers(self) -> int:
        """L; 1 where only the last layer is stored."""
        part = next(iter(self._places.values()))[0]
        with _open_part(part) as file:
            return file.get_slice("features").get_shape()[1]

    def layer(self, index: int) -> Tensor:
        """Features (N, K) of one layer; rows of files that cannot be read are NaN."""
        by_part: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for place, (part, row) in self._places.items():
            by_part[part].append((place, row))
        values = torch.empty(0)
        for part, pairs in by_part.items():
            with _open_part(part) as file:
                stored = file.get_slice("features")[:, index]  # (rows, K)
            if not len(values):
                values = torch.full((len(self.files), stored.shape[1]), torch.nan)
            places, rows = zip(*pairs, strict=True)
            values[list(places)] = stored[list(rows)]
        return values


def stored_features(
    encoder: ClipEncoder,
    files: Sequence[AudioFile],
    cache: Path,
    *,
    num_workers: int = 2,
    progress: bool = True,
) -> StoredFeatures:
    """Encodes the files whose features are not yet in the cache, and stores them as it goes.

    A run that was stopped goes on after the last part that it wrote. A changed file is encoded again.

    Args:
        encoder: The model and its settings.
        files: Paths, or parts of what is there.
        cache: Folder; those of several models and settings may share it.
        num_workers: Threads that read audio.
        progress: Show a bar over the files.

    Raises:
        CheckpointError: A part of the cache is damaged.
    """
    from tqdm import tqdm

    folder = cache / encoder.key()
    folder.mkdir(parents=True, exist_ok=True)
    keys, sizes, errors = _file_keys(files)
    found = _read_index(folder)
    missing = {key: place for place, key in keys.items() if key not in found}  # a file counts once
    # Clips of one size are probably of one length, and are encoded together.
    order = sorted(missing.values(), key=lambda place: (sizes[place], place))
    with tqdm(total=len(order), desc="features", unit="clip", disable=None if progress else True) as bar:
        for part in encode_files(encoder, [files[place] for place in order], num_workers):
            part_keys = [keys[order[clip]] for clip in part.clips]
            if part_keys:
                path = _write_part(folder, part_keys, part.features)
                found |= {key: (path, row) for row, key in enumerate(part_keys)}
            failed = {keys[order[clip]]: reason for clip, reason in part.errors.items()}
            errors |= {place: failed[key] for place, key in keys.items() if key in failed}
            bar.update(len(part.clips) + len(part.errors))
    places = {place: found[key] for place, key in keys.items() if key in found}
    return StoredFeatures(files, errors, len(order), places)


def _file_keys(files: Sequence[AudioFile]) -> tuple[dict[int, str], dict[int, int], dict[int, str]]:
    """Marks of each file's present state, its bytes, and the files that are not there; by place."""
    keys, sizes, errors = {}, {}, {}
    for place, file in enumerate(files):
        try:
            state = os.stat(file)
        except OSError as error:
            errors[place] = str(error)
            continue
        part = [file.start_s, file.end_s] if isinstance(file, AudioPart) else []
        text = json.dumps([os.path.abspath(file), state.st_size, state.st_mtime_ns, *part])
        keys[place] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        sizes[place] = state.st_size
    return keys, sizes, errors


def _read_index(folder: Path) -> dict[str, tuple[Path, int]]:
    found: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob(PARTS)):
        with _open_part(path) as file:
            keys = json.loads(file.metadata()["clips"])
        found |= {key: (path, row) for row, key in enumerate(keys)}
    return found


@contextlib.contextmanager
def _open_part(path: Path) -> Iterator[Any]:
    with (
        reading_file(path, "features", "Delete it and run again.", CheckpointError),
        safe_open(path, framework="pt") as file,
    ):
        yield file


def _write_part(folder: Path, keys: list[str], features: Tensor) -> Path:
    """Writes a part, whole or not at all, under a name that no other run takes."""
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    with replacing(path) as partial:
        save_file({"features": features.contiguous()}, partial, metadata={"clips": json.dumps(keys)})
    return path
