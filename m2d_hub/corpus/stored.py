"""Embeddings that were written by ``m2d-hub embed``, read again, whatever their format."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.dataset_output import DATASET_SUFFIX, dataset_contents, dataset_records
from m2d_hub.corpus.folder_output import INDEX, SETTINGS, folder_contents, folder_records
from m2d_hub.corpus.formats import FORMATS
from m2d_hub.corpus.outputs import check_suffix
from m2d_hub.corpus.records import Contents, Origin, Record
from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import resolve


@dataclass(frozen=True)
class Stored:
    """An output of :func:`m2d_hub.embed_files`: how its embeddings were made, and of which files."""

    path: Path
    contents: Contents

    @property
    def settings(self) -> dict[str, Any]:
        """Model, weights, kind and window of the embeddings."""
        return self.contents.settings

    @property
    def origins(self) -> dict[str, Origin]:
        """What each embedding was made of, by the name of its file."""
        return self.contents.origins

    def records(self) -> Iterator[Record]:
        """The embeddings, in order, one at a time.

        Raises:
            ConfigError: The output is damaged.
        """
        if not self.path.is_dir():
            return FORMATS[_suffix(self.path)].records(self.path)
        return dataset_records(self.path) if _is_dataset(self.path) else folder_records(self.path)


def read_stored(path: str | os.PathLike[str]) -> Stored:
    """Opens an output of :func:`m2d_hub.embed_files`: a file, or a folder.

    Raises:
        ConfigError: There is none, it is not finished, or something else wrote it.
    """
    path = Path(path)
    check_suffix(path)
    if not path.exists():
        begun = path.with_name(path.name + ".parts").is_dir()
        raise ConfigError(
            f"{path} is not finished: run the m2d-hub embed that writes it again."
            if begun
            else f"{path} does not exist; give what m2d-hub embed wrote."
        )
    if path.is_dir():
        return Stored(path, dataset_contents(path) if _is_dataset(path) else folder_contents(path))
    return Stored(path, FORMATS[_suffix(path)].contents(path))


def frames_of(record: Record) -> np.ndarray:
    """A record's embedding as (T, D): of layers the last, of a clip one row."""
    embedding = record.embedding[-1] if record.embedding.ndim == 3 else record.embedding
    return embedding.reshape(-1, embedding.shape[-1])


def is_stored(path: str | os.PathLike[str]) -> bool:
    """Whether a path means an output of :func:`m2d_hub.embed_files`, which need not be there, by its name.

    A folder of ``.npy`` files is known by its index.
    """
    path = Path(path)
    suffixes = (*FORMATS, DATASET_SUFFIX)
    return path.suffix.lower() in suffixes or ((path / INDEX).is_file() and (path / SETTINGS).is_file())


def load_model_of(
    stored: Stored, name: str | os.PathLike[str] | None = None, device: str | None = None
) -> M2D:
    """The model that an output was made with.

    Args:
        stored: The output.
        name: Where the model is to be had; None: by the name that the output tells.
        device: As for :func:`m2d_hub.load_model`.

    Raises:
        ConfigError: Its weights are others.
        M2DError: It cannot be loaded.
    """
    settings = stored.settings
    chosen = settings["model"] if name is None else name
    if sha256_of_model(resolve(chosen)) != settings.get("weights"):
        raise ConfigError(
            f"{stored.path} was embedded with {settings['model']!r}, and the weights of model "
            f"{os.fspath(chosen)!r} are others: their embeddings cannot be compared. Leave model out, or "
            "embed the files anew."
        )
    window = settings["window_s"]
    return load_model(chosen, device=device, window_s=math.inf if window == "inf" else window)


def _is_dataset(path: Path) -> bool:
    return path.suffix.lower() == DATASET_SUFFIX


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"{path} is no output of m2d-hub embed: give {', '.join(FORMATS)} or its folder.")
    return suffix
