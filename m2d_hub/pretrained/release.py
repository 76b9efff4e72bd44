"""Weights of the authors' releases: downloaded once, checked, converted, and verified at each load.

Below the cache's root, ``<name>/`` contains ``model.safetensors`` and ``config.json`` (for inference),
``pretraining.safetensors`` if the release has more, and ``origin.json``; ``downloads/`` contains unfinished
and refused zips, ``hashes/`` the SHA-256 of each zip at its first download.
"""

from __future__ import annotations

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
    """Return the folder of a published model in the cache ``root``; download and convert it if necessary."""
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
    return path.read_text(encoding="utf-8", errors="replace")[:64] if path.is_file() else None


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Record where a folder's files came from, with the size, time of change and SHA-256 of each."""
    files = {
        path.name: {"sha256": sha256_of(path), "stamp": _stamp(path)} for path in sorted(folder.iterdir())
    }
    text = json.dumps(origin | {"files": files}, indent=2) + "\n"
    (folder / ORIGIN_FILE).write_text(text, encoding="utf-8")


def read_origin(folder: Path) -> dict[str, Any]:
    """Return the record that :func:`write_origin` wrote."""
    path = folder / ORIGIN_FILE
    with reading_file(path, "the record of a download", _again(folder), ChecksumError):
        origin: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"zip_bytes": int(origin["zip_bytes"]), "files": dict(origin["files"])}


def verify(folder: Path) -> None:
    """Compare each file with its record: by size and time of change, and by SHA-256 if these differ."""
    with reading_file(folder / ORIGIN_FILE, "the record of a download", _again(folder), ChecksumError):
        for name, recorded in read_origin(folder)["files"].items():
            path = folder / name
            if _stamp(path) != recorded["stamp"] and sha256_of(path) != recorded["sha256"]:
                raise ChecksumError(f"{path} has changed since it was written. {_again(folder)}")


def extract_checkpoint(archive: Path, folder: Path, filename: str | None = None) -> Path:
    """Unpack the ``.pth`` of a zip (of several, the one named ``filename``) as ``folder/checkpoint.pth``."""
    target = folder / "checkpoint.pth"
    hint = "Delete it and download it again."
    with reading_file(archive, "a zip", hint, CheckpointError), zipfile.ZipFile(archive) as opened:
        names = {entry: PurePosixPath(entry.filename).name for entry in opened.infolist()}
        found = [entry for entry, name in names.items() if name.endswith(".pth") and name[0] != "."]
        if len(found) > 1:
            found = [entry for entry in found if names[entry] == filename]
        if len(found) != 1:
            raise ValueError(f"it must contain {filename or 'one .pth file'}")
        size = found[0].file_size
        if size > MAX_UNPACKED_BYTES or size > MAX_RATIO * max(found[0].compress_size, 1):
            raise ValueError(
                f"its .pth file has {size:,} bytes in {found[0].compress_size:,}; at most "
                f"{MAX_UNPACKED_BYTES:,} and {MAX_RATIO} times its packed size are allowed"
            )
        with opened.open(found[0]) as source, storage_errors(folder), target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)  # compares the CRC at the end
    return target


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
    """Download a file, resuming an interrupted download."""
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
        raise DownloadError(
            f"{url} could not be downloaded ({reason_of(error)}). Try again to resume, or delete {partial} "
            f"to start over. {_offline_hint(url, target)}"
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
            write_safetensors(folder / PRETRAINING_FILE, published.pretraining, {"format": "pt"})
        write_origin(folder, origin | {"zip_bytes": zip_path.stat().st_size})


def _check_hash(info: ModelInfo, root: Path, zip_path: Path, digest: str) -> None:
    """Compare a zip's SHA-256 with the registry's, or else with that of its first download."""
    expected = info.sha256 or recorded_hash(info, root)
    if expected not in (None, digest):
        raise ChecksumError(
            f"{zip_path} is not the recorded file: its sha256 is {digest}, recorded is {expected}. If its "
            f"publisher replaced it and you trust the new file, delete {_hash_path(info, root)} and load the "
            "model again."
        )


def _again(folder: Path) -> str:
    return f"Delete {folder} and load the model again."


def _hash_path(info: ModelInfo, root: Path) -> Path:
    return root / "hashes" / f"{info.folder}.zip.sha256"


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
