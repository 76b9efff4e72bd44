"""The cache of published weights: downloaded once, checked, converted, and verified ever after.

Below ``$HF_HOME/m2d_hub``, or the ``cache_dir`` given, ``<name>/`` holds ``model.safetensors`` and
``config.json`` (what inference reads), ``pretraining.safetensors`` where the release has more, and
``origin.json``; ``downloads/`` holds zips on their way, ``hashes/`` the sha256 of each at its first download.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from m2d_hub.errors import DownloadError, M2DError
from m2d_hub.io import locked, sha256_of, storage_errors
from m2d_hub.pretrained.archive import extract_checkpoint
from m2d_hub.pretrained.cache import PACKAGED, cache_root, is_offline, release_url, zip_path_of
from m2d_hub.pretrained.download import download, offline_advice
from m2d_hub.pretrained.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_checkpoint,
    read_safetensors,
    save_checkpoint,
)
from m2d_hub.pretrained.provenance import ORIGIN_FILE, check_release_hash, record_hash, verify, write_origin
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.published_check import check_published
from m2d_hub.pretrained.published_names import published_tensors
from m2d_hub.pretrained.registry import ModelInfo

PRETRAINING_FILE = "pretraining.safetensors"


def fetch(
    info: ModelInfo, *, cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False
) -> Path:
    """Folder with a named model's converted weights: downloaded at the first call, verified at each.

    Raises:
        DownloadError: The weights are not in the cache and cannot be fetched or stored.
        ChecksumError: The zip or the converted weights are not those recorded.
        CheckpointError: The zip is unsafe or damaged, or its tensors are not those of this model.
    """
    if info.is_packaged:
        return _packaged(info.name)
    root = cache_root(cache_dir)
    folder, zip_path = root / info.name, zip_path_of(info, root)
    if not (folder / ORIGIN_FILE).is_file():
        if (local_files_only or is_offline()) and not zip_path.is_file():
            raise DownloadError(
                f"{info.name!r} is not in the cache ({folder}) and the network is not to be used "
                f"(local_files_only or HF_HUB_OFFLINE). {offline_advice(release_url(info), zip_path)}"
            )
        with locked(root / ".locks" / f"{info.name}.lock"):
            if not (folder / ORIGIN_FILE).is_file():
                _obtain(info, root, zip_path)
    verify(folder)
    return folder


def load_all_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a model's folder but a head's, under their published names, for further pre-training."""
    checkpoint = load_checkpoint(folder)
    tensors = published_tensors(checkpoint.tensors, checkpoint.config.frontend)
    pretraining = folder / PRETRAINING_FILE
    return tensors | (read_safetensors(pretraining)[0] if pretraining.is_file() else {})


def _packaged(name: str) -> Path:
    folder = PACKAGED / name
    if not (folder / WEIGHTS_FILE).is_file():
        raise DownloadError(
            f"The weights of {name!r} belong inside this package, but {folder} holds none: this version is "
            "without them, or not whole. Load another name of list_models(), or install the package again."
        )
    return folder


def _obtain(info: ModelInfo, root: Path, zip_path: Path) -> None:
    url, placed_by_hand = release_url(info), zip_path.is_file()
    if placed_by_hand:
        digest, size = sha256_of(zip_path), zip_path.stat().st_size
    else:
        fetched = download(url, zip_path)
        digest, size = fetched.sha256, fetched.size
    try:
        check_release_hash(info, root, zip_path, digest)
        _convert(info, root, zip_path, {"url": url, "zip_sha256": digest, "zip_bytes": size})
        record_hash(info, root, digest)
    except M2DError as error:
        if not placed_by_hand and not isinstance(error, DownloadError):  # a full disk keeps what is whole
            zip_path.unlink()
        raise
    zip_path.unlink()


def _convert(info: ModelInfo, root: Path, zip_path: Path, origin: dict[str, Any]) -> None:
    """Writes the converted weights beside their place, and moves them there when all is well."""
    with _work_folder(root / ".work" / info.name) as work:
        path = extract_checkpoint(zip_path, work, info.filename)
        published = read_published(path, name=info.name, folder_name=info.folder)
        check_published(published, info, f"{path.name} of {zip_path.name}")
        converted = work / "converted"
        config = replace(published.config, license=info.license, source=info.source)
        save_checkpoint(converted, published.tensors, config)
        if published.pretraining:
            tensors = {name: tensor.contiguous() for name, tensor in published.pretraining.items()}
            save_file(tensors, converted / PRETRAINING_FILE, metadata={"format": "pt"})
            # safetensors writes for its owner alone.
            shutil.copymode(converted / CONFIG_FILE, converted / PRETRAINING_FILE)
        write_origin(converted, origin)
        folder = root / info.name
        if folder.exists():  # without its record, so not whole
            shutil.rmtree(folder)
        os.replace(converted, folder)


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards; what a killed process left there goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True)
            try:
                yield folder
            except SafetensorError as error:  # hides the system's error in its text
                code = re.search(r"os error (\d+)", str(error))
                if code is None:
                    raise
                raise OSError(int(code[1]), str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
