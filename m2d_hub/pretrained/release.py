"""Weights of the authors' releases: downloaded once, checked, converted, and verified at each load.

Below the cache's root, ``<name>/`` contains ``model.safetensors`` and ``config.json`` (for inference),
``pretraining.safetensors`` if the release has more, and ``origin.json``; ``downloads/`` contains unfinished
and refused zips, ``hashes/`` the SHA-256 of each zip at its first download.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from m2d_hub.errors import CheckpointError, ChecksumError, DownloadError, M2DError, reason_of
from m2d_hub.io import (
    CHUNK_BYTES,
    locked,
    reading_file,
    replacing,
    replacing_folder,
    sha256_of,
    storage_errors,
)
from m2d_hub.pretrained.checkpoint import (
    CONFIG_FILE,
    load_checkpoint,
    read_safetensors,
    save_checkpoint,
    write_safetensors,
)
from m2d_hub.pretrained.published import check_published, read_published
from m2d_hub.pretrained.published_names import published_tensors
from m2d_hub.pretrained.registry import ModelInfo

MIRROR_VARIABLE = "M2D_HUB_MIRROR"
ORIGIN_FILE = "origin.json"
PRETRAINING_FILE = "pretraining.safetensors"
MAX_DOWNLOAD_BYTES = 8 << 30
MAX_UNPACKED_BYTES = 4 << 30  # of the largest file in a release: about 1.6 GB
MAX_RATIO = 200  # unpacked to packed; weights hardly shrink


def fetch(info: ModelInfo, root: Path, *, offline: bool) -> Path:
    """Return the folder of a published model in the cache ``root``; download and convert it if necessary.

    Raises:
        DownloadError: The weights are not in the cache and cannot be downloaded or stored.
        ChecksumError: The zip or the converted weights are not those recorded.
        CheckpointError: The zip is damaged, or its tensors are not those of this model.
    """
    folder, zip_path = root / info.name, root / "downloads" / f"{info.folder}.zip"
    if not (folder / ORIGIN_FILE).is_file():
        if offline and not zip_path.is_file():
            raise DownloadError(
                f"{info.name!r} is not in the cache ({folder}), and the network is disabled "
                f"(local_files_only or HF_HUB_OFFLINE). {_offline_hint(release_url(info), zip_path)}"
            )
        with locked(root / ".locks" / f"{info.name}.lock"):
            if not (folder / ORIGIN_FILE).is_file():
                _obtain(info, root, zip_path)
    verify(folder)
    return folder


def release_url(info: ModelInfo) -> str:
    """Return the address of the zip: the authors' release, or the mirror named by ``M2D_HUB_MIRROR``."""
    base = os.environ.get(MIRROR_VARIABLE) or f"{info.releases}/download"
    return f"{base.rstrip('/')}/{info.url_path}"


def load_all_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a model's folder except a head's, under their published names."""
    checkpoint = load_checkpoint(folder)
    tensors = published_tensors(checkpoint.tensors, checkpoint.config.frontend)
    pretraining = folder / PRETRAINING_FILE
    return tensors | (read_safetensors(pretraining)[0] if pretraining.is_file() else {})


def recorded_hash(info: ModelInfo, root: Path) -> str | None:
    """Return the zip's SHA-256 at its first download into this cache, or None."""
    path = _hash_path(info, root)
    words = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return words[0] if words else None


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Record where a folder's files came from, with the size, time of change and SHA-256 of each."""
    files = {
        path.name: {"sha256": sha256_of(path), "stamp": _stamp(path)}
        for path in sorted(folder.iterdir())
        if path.name != ORIGIN_FILE
    }
    with replacing(folder / ORIGIN_FILE) as partial:
        partial.write_text(json.dumps(origin | {"files": files}, indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> dict[str, Any]:
    """Return the record that :func:`write_origin` wrote.

    Raises:
        ChecksumError: It is damaged.
    """
    path = folder / ORIGIN_FILE
    with reading_file(path, "the record of a download", _again(folder), ChecksumError):
        origin: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(origin.get("zip_bytes", 0), int):
            raise ValueError("the size of the zip is not a number")
        for recorded in origin["files"].values():
            recorded["stamp"], recorded["sha256"]
    return origin


def verify(folder: Path) -> None:
    """Compare each file with its record: by size and time of change, and by SHA-256 if these differ.

    Raises:
        ChecksumError: A file is missing or has changed.
    """
    origin = read_origin(folder)
    touched = False
    for name, recorded in origin["files"].items():
        path = folder / name
        if not path.is_file():
            raise ChecksumError(f"{path} is missing. {_again(folder)}")
        if _stamp(path) == recorded["stamp"]:
            continue
        touched = True
        digest = sha256_of(path)
        if digest != recorded["sha256"]:
            raise ChecksumError(
                f"{path} has changed since it was written: its sha256 is {digest}, recorded is "
                f"{recorded['sha256']}. {_again(folder)}"
            )
    if touched:  # copied from elsewhere: hash once, not at every load, unless the cache is read-only
        with contextlib.suppress(OSError):
            write_origin(folder, {key: value for key, value in origin.items() if key != "files"})


def extract_checkpoint(archive: Path, folder: Path, filename: str | None = None) -> Path:
    """Unpack the ``.pth`` of a zip (of several, the one named ``filename``) as ``folder/checkpoint.pth``.

    Raises:
        CheckpointError: The zip is damaged, too large when unpacked, or does not contain the file.
    """
    target = folder / "checkpoint.pth"
    hint = "Delete it and download it again."
    with reading_file(archive, "a zip", hint, CheckpointError), zipfile.ZipFile(archive) as opened:
        entry = _find_weights(archive, opened.infolist(), filename)
        with opened.open(entry) as source, storage_errors(folder), target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)  # compares the CRC at the end
    return target


def _find_weights(archive: Path, entries: list[zipfile.ZipInfo], filename: str | None) -> zipfile.ZipInfo:
    names = {entry: PurePosixPath(entry.filename).name for entry in entries}
    weights = [entry for entry, name in names.items() if name.endswith(".pth") and not name.startswith(".")]
    found = weights if len(weights) == 1 else [entry for entry in weights if names[entry] == filename]
    if len(found) != 1:
        listed = ", ".join(repr(entry.filename[:100]) for entry in (weights or entries)[:8]) or "nothing"
        raise CheckpointError(
            f"{archive} must contain {filename or 'one .pth file'}, but contains {listed}. "
            "Unpack it yourself and give the file's path to load_model."
        )
    size = found[0].file_size
    if size > MAX_UNPACKED_BYTES or size > MAX_RATIO * max(found[0].compress_size, 1):
        raise CheckpointError(
            f"{archive} was not unpacked: its .pth file has {size:,} bytes in {found[0].compress_size:,}; at "
            f"most {MAX_UNPACKED_BYTES:,} and {MAX_RATIO} times its packed size are allowed."
        )
    return found[0]


def _obtain(info: ModelInfo, root: Path, zip_path: Path) -> None:
    """Download a zip unless a complete one is there, and convert it; a refused zip is kept."""
    url = release_url(info)
    if not zip_path.is_file():
        _download(url, zip_path)
    try:
        digest = sha256_of(zip_path)
        _check_hash(info, root, zip_path, digest)
        _convert(info, root, zip_path, {"url": url, "zip_sha256": digest})
    except M2DError as error:
        if isinstance(error, DownloadError):  # of the disk, not of the file
            raise
        raise type(error)(f"{error} The file is kept: delete {zip_path} to download it again.") from error
    with replacing(_hash_path(info, root)) as partial:  # in the format of sha256sum
        partial.write_text(f"{digest}  {info.folder}.zip\n", encoding="utf-8")
    zip_path.unlink()


class _LimitedFile(io.BufferedWriter):
    """A file that a server cannot make larger than ``MAX_DOWNLOAD_BYTES``."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MAX_DOWNLOAD_BYTES:
            self.truncate(0)
            raise DownloadError(f"the server sent more than {MAX_DOWNLOAD_BYTES:,} bytes; check the URL.")
        return super().write(data)


def _download(url: str, target: Path) -> None:
    """Download a file, resuming an interrupted download.

    Raises:
        DownloadError: The server does not provide the file, or it cannot be stored.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    partial = target.with_name(target.name + ".partial")
    try:
        with storage_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _LimitedFile(io.FileIO(partial, "ab")) as file:
                http_get(url, file, resume_size=file.tell(), displayed_filename=target.name)
            os.replace(partial, target)
    except M2DError:
        raise
    except Exception as error:  # the HTTP library's, which is not a dependency of this package
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:  # not a part of the file
            partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{url} could not be downloaded ({reason_of(error)}). Try again to resume. "
            f"{_offline_hint(url, target)}"
        ) from error


def _offline_hint(url: str, target: Path) -> str:
    return f"To work offline, download {url} on another machine and put it at {target}."


def _convert(info: ModelInfo, root: Path, zip_path: Path, origin: dict[str, Any]) -> None:
    with storage_errors(root), replacing_folder(root / info.name) as folder:
        path = extract_checkpoint(zip_path, folder, info.filename)
        published = read_published(path, name=info.name, folder_name=info.folder)
        path.unlink()
        check_published(published, info, zip_path)
        config = replace(published.config, license=info.license, source=info.source)
        save_checkpoint(folder, published.tensors, config)
        if published.pretraining:
            write_safetensors(folder / PRETRAINING_FILE, published.pretraining, {})
            shutil.copymode(folder / CONFIG_FILE, folder / PRETRAINING_FILE)
        write_origin(folder, origin | {"zip_bytes": zip_path.stat().st_size})


def _check_hash(info: ModelInfo, root: Path, zip_path: Path, digest: str) -> None:
    """Compare a zip's SHA-256 with the registry's, or else with that of its first download."""
    if info.sha256 not in (None, digest):
        raise ChecksumError(
            f"{zip_path} is not the published file: its sha256 is {digest}, published is {info.sha256}."
        )
    recorded = recorded_hash(info, root)
    if recorded not in (None, digest):
        raise ChecksumError(
            f"{zip_path} is not the file of the first download: its sha256 is {digest}, recorded is "
            f"{recorded}. If its publisher replaced it and you trust the new file, delete "
            f"{_hash_path(info, root)} and load the model again."
        )


def _again(folder: Path) -> str:
    return f"Delete {folder} and load the model again."


def _hash_path(info: ModelInfo, root: Path) -> Path:
    return root / "hashes" / f"{info.folder}.zip.sha256"


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
