"""Features on disk: computed once per model, settings and file, and stored in parts as encoding proceeds.

Shapes: N clips, L layers, K features of a clip.
"""

from __future__ import annotations

import contextlib
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

from m2d_hub.errors import CheckpointError
from m2d_hub.io import reading_file, replacing

from ..data.annotations import AudioFile
from ..evaluation.clip_encoder import ClipEncoder, encode_files
from ..evaluation.unreadable import file_key
from ..runs.folder import progress_bar


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a list of files, read from disk layer by layer."""

    files: Sequence[AudioFile]
    errors: dict[int, str]  # indices of unreadable files, with the reason; the others are stored
    computed: int  # files that were encoded now
    _rows: dict[int, tuple[Path, int]]  # part and row of each file, by its index

    @property
    def num_layers(self) -> int:
        """L; 1 if only the last layer is stored."""
        part, _ = next(iter(self._rows.values()))
        with _open_part(part) as file:
            return file.get_slice("features").get_shape()[1]

    def layer(self, index: int) -> Tensor:
        """Return the features (N, K) of one layer; rows of unreadable files are NaN."""
        by_part: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for file_index, (part, row) in self._rows.items():
            by_part[part].append((file_index, row))
        values = torch.empty(0)
        for part, pairs in by_part.items():
            with _open_part(part) as file:
                stored = file.get_slice("features")[:, index]  # (rows, K)
            if not len(values):
                values = torch.full((len(self.files), stored.shape[1]), torch.nan)
            indices, rows = zip(*pairs, strict=True)
            values[list(indices)] = stored[list(rows)]
        return values


def stored_features(
    encoder: ClipEncoder,
    files: Sequence[AudioFile],
    cache: Path,
    *,
    num_workers: int = 2,
    progress: bool = True,
) -> StoredFeatures:
    """Encode and store the files whose features are not in the cache; changed files are encoded again.

    Args:
        encoder: The model and its settings.
        files: Paths, or parts of files.
        cache: Folder, which several models and settings may share.
        num_workers: Threads that read audio.
        progress: Show a progress bar over the files.

    Raises:
        CheckpointError: A part of the cache is damaged.
    """
    folder = cache / encoder.key()
    folder.mkdir(parents=True, exist_ok=True)
    keys, errors = dict[int, str](), dict[int, str]()
    for index, file in enumerate(files):
        try:
            keys[index] = file_key(file)
        except OSError as error:
            errors[index] = str(error)
    found = _read_index(folder)
    missing = {key: index for index, key in keys.items() if key not in found}  # each file once
    # Files of one size probably have one length, and are encoded together.
    order = sorted(missing.values(), key=lambda index: (os.path.getsize(files[index]), index))
    with progress_bar("features", 0, len(order), "clip", progress) as bar:
        for batch in encode_files(encoder, [files[index] for index in order], num_workers):
            batch_keys = [keys[order[clip]] for clip in batch.clips]
            if batch_keys:
                path = _write_part(folder, batch_keys, batch.features)
                found |= {key: (path, row) for row, key in enumerate(batch_keys)}
            failed = {keys[order[clip]]: reason for clip, reason in batch.errors.items()}
            errors |= {index: failed[key] for index, key in keys.items() if key in failed}
            bar.update(len(batch.clips) + len(batch.errors))
    rows = {index: found[key] for index, key in keys.items() if key in found}
    return StoredFeatures(files, errors, len(order), rows)


def _read_index(folder: Path) -> dict[str, tuple[Path, int]]:
    found: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
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
    """Write a part atomically, under a name that no other run uses."""
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    with replacing(path) as partial:
        save_file({"features": features.contiguous()}, partial, metadata={"clips": json.dumps(keys)})
    return path
