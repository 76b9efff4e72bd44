"""Outputs of ``m2d-hub embed``, read back in any format."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2d_hub.corpus.formats import FORMATS, INDEX, SETTINGS, ArrayFile, NpyFolder
from m2d_hub.corpus.parquet import Parquet
from m2d_hub.corpus.records import Fingerprint, Row
from m2d_hub.corpus.stores import Location, StorePath, names_in, open_location, to_location
from m2d_hub.errors import ConfigError, M2DError
from m2d_hub.hub import load_model
from m2d_hub.io import as_text, reading
from m2d_hub.model import M2D
from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import path_of, resolve

DATASET_SUFFIX = ".dataset"  # a folder of Parquet files
DATASET_PART = re.compile(r"(?!_).+\.parquet")
_IN_STORES = (".parquet", DATASET_SUFFIX)
_HINT = "It was not written by m2d-hub embed, or is damaged, and is not changed; give another one."


Settings = dict[str, Any]
Fingerprints = dict[str, Fingerprint]  # by name


@dataclass(frozen=True)
class Piece:
    """A file or folder with rows of an output."""

    format: Parquet | ArrayFile | NpyFolder
    location: Location

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Yield the folder or the open file, and raise what is wrong with it as a ConfigError."""
        with reading(self.location, "embeddings", _HINT, ConfigError):
            if isinstance(self.format, NpyFolder):
                yield self.location
                return
            with open_location(self.location) as file:
                yield file

    def entries(self) -> tuple[Settings, Fingerprints]:
        """Return the settings, and the fingerprints in the order of the rows."""
        with self._opened() as source:
            text, files, fingerprints = self.format.entries(source)
            settings = json.loads(text)
            if not isinstance(settings, dict) or not settings.keys() >= {"model", "kind", "window_s"}:
                raise ValueError("settings of something else")
            by_name = dict(zip(files, fingerprints, strict=True))
            if len(by_name) < len(files):
                raise ValueError("file names that are not unique")
            return settings, by_name

    def rows(self) -> Iterator[Row]:
        """Return the rows, one at a time."""
        with self._opened() as source:
            yield from self.format.rows(source)


def pieces_of(out: Location) -> list[Piece]:
    """Return the pieces of a finished output, or none if it does not exist."""
    suffix = out.suffix.lower()
    if suffix == DATASET_SUFFIX:
        return [
            Piece(FORMATS[".parquet"], out / name) for name in names_in(out) if DATASET_PART.fullmatch(name)
        ]
    if isinstance(out, Path) and out.is_dir():
        return [Piece(NpyFolder(), out)] if (out / INDEX).exists() else []
    return [Piece(FORMATS[suffix], out)] if suffix in FORMATS and out.exists() else []


def check_suffix(out: Location) -> None:
    """Refuse a suffix that is not a format; a number such as ``.7`` is part of a folder's name.

    Raises:
        ConfigError: The message lists the formats.
    """
    suffix = out.suffix.lower()
    if isinstance(out, StorePath):
        if suffix not in _IN_STORES:
            raise ConfigError(f"{out}: in a store, the output must end in {' or '.join(_IN_STORES)}.")
    elif suffix[1:2].isalpha() and not out.is_dir() and suffix not in (*FORMATS, DATASET_SUFFIX):
        allowed = f"{', '.join([*FORMATS, DATASET_SUFFIX])}, or no suffix for a folder of .npy files"
        raise ConfigError(f"{out}: unknown suffix {out.suffix!r}. Use {allowed}.")


def check_settings(out: object, started: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to mix rows of different settings."""
    if started != wanted:
        differing = [key for key in wanted if started.get(key) != wanted[key]]
        changes = "; ".join(f"{key} {started.get(key)!r}, now {wanted[key]!r}" for key in differing)
        raise ConfigError(
            f"{out} was started with other settings ({changes}). Use the same settings, give another output, "
            "or delete it to start over."
        )


@dataclass(frozen=True)
class EmbeddingsFile:
    """An output of :func:`m2d_hub.embed_files`."""

    path: Location
    pieces: list[Piece]
    settings: Settings  # model, weights, kind and window of the embeddings
    fingerprints: Fingerprints  # of the embedded files

    def rows(self) -> Iterator[Row]:
        """Return the embeddings, one at a time.

        Raises:
            ConfigError: The output is damaged.
        """
        for piece in self.pieces:
            yield from piece.rows()


def read_embeddings(path: str | os.PathLike[str]) -> EmbeddingsFile:
    """Open an output of :func:`m2d_hub.embed_files`: a file, a folder, or their URL in a store.

    Raises:
        ConfigError: It does not exist, is not finished, or was written by something else.
    """
    out = to_location(path)
    check_suffix(out)
    pieces = pieces_of(out)
    if not pieces:
        if names_in(out.with_name(f"{out.name}.parts")):
            raise ConfigError(f"{out} is not finished: run the m2d-hub embed command that writes it again.")
        if not out.exists():
            raise ConfigError(f"{out} does not exist; give an output of m2d-hub embed.")
        raise ConfigError(f"{out} contains no embeddings. {_HINT}")
    settings, fingerprints = pieces[0].entries()
    for piece in pieces[1:]:
        started, others = piece.entries()
        check_settings(out, settings, started)
        if twice := fingerprints.keys() & others.keys():
            raise ConfigError(
                f"{out} contains {min(twice)} twice; run the m2d-hub embed command that writes it again."
            )
        fingerprints |= others
    return EmbeddingsFile(out, pieces, settings, fingerprints)


def frames_of(row: Row) -> np.ndarray:
    """Return the embedding of a row as (T, D): the last of several layers; a clip is one frame."""
    embedding = row.embedding[-1] if row.embedding.ndim == 3 else row.embedding
    return embedding.reshape(-1, embedding.shape[-1])


def is_embeddings(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names an output of :func:`m2d_hub.embed_files`, which need not exist.

    A folder of ``.npy`` files is recognised by its index.
    """
    out = to_location(path)
    if out.suffix.lower() in (*FORMATS, DATASET_SUFFIX):
        return True
    return isinstance(out, Path) and (out / INDEX).is_file() and (out / SETTINGS).is_file()


def load_model_of(
    stored: EmbeddingsFile, name: str | os.PathLike[str] | None = None, device: str | None = None
) -> M2D:
    """Load the model that an output was made with.

    Args:
        stored: The output.
        name: What :func:`m2d_hub.load_model` takes; None: the recorded model, if it is on this machine with
            the recorded weights. An output never causes a download.
        device: As for :func:`m2d_hub.load_model`.

    Raises:
        ConfigError: The model has other weights, or must be named.
        M2DError: It cannot be loaded.
    """
    recorded, weights = str(stored.settings["model"]), stored.settings.get("weights")
    if name is None:
        if not _is_on_disk(recorded, weights):
            raise ConfigError(
                f"{stored.path} was embedded with {as_text(recorded)!r}, which is not on this machine with "
                "the same weights; name the model (--model, or model=)."
            )
        name = recorded
    elif sha256_of_model(resolve(name)) != weights:
        raise ConfigError(
            f"{stored.path} was embedded with {as_text(recorded)!r}, and the weights of model "
            f"{os.fspath(name)!r} are others, so their embeddings cannot be compared. Name the same model, "
            "or embed the files again."
        )
    window = stored.settings["window_s"]
    return load_model(name, device=device, window_s=math.inf if window == "inf" else window)


def _is_on_disk(model: str, weights: object) -> bool:
    """Return whether a recorded model is on this machine with these weights, without using the network."""
    try:
        path = path_of(model)
        if model.startswith("random:") or (path is not None and not (path.is_file() or path.is_dir())):
            return False
        return sha256_of_model(resolve(model, local_files_only=True)) == weights
    except (M2DError, OSError, ValueError):
        return False
