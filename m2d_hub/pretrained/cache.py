"""Where the cache is, and what it has of the models that load by name; reads no weights."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from m2d_hub.config import ModelConfig
from m2d_hub.errors import DownloadError
from m2d_hub.pretrained.download import check_address
from m2d_hub.pretrained.provenance import ORIGIN_FILE, read_origin, recorded_hash
from m2d_hub.pretrained.registry import ModelInfo, find_model

MIRROR_VARIABLE = "M2D_HUB_MIRROR"
PACKAGED = Path(__file__).parents[1] / "weights"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the cache: ``cache_dir``, else ``$HF_HOME/m2d_hub``.

    Raises:
        DownloadError: None is given, and this user has no home.
    """
    from huggingface_hub import constants

    try:
        if cache_dir is not None:
            return Path(cache_dir).expanduser()
        return Path(os.environ.get("HF_HOME") or constants.HF_HOME).expanduser() / "m2d_hub"
    except RuntimeError as error:
        raise DownloadError(
            "there is no home folder to keep weights in: give load_model(..., cache_dir=FOLDER), or set the "
            "environment variable HF_HOME."
        ) from error


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network."""
    from huggingface_hub import constants

    set_later = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return constants.HF_HUB_OFFLINE or set_later


def release_url(info: ModelInfo) -> str:
    """Where the zip is fetched from: the authors' release, or the mirror named by ``M2D_HUB_MIRROR``.

    Raises:
        DownloadError: That is no address.
    """
    mirror = os.environ.get(MIRROR_VARIABLE)
    base = check_address(mirror, MIRROR_VARIABLE) if mirror else f"{info.releases}/download"
    return f"{base.rstrip('/')}/{info.url_path}"


def zip_path_of(info: ModelInfo, root: Path) -> Path:
    """Where a release's zip is while it is on its way, or where it may be put by hand."""
    return root / "downloads" / f"{info.folder}.zip"


def model_info(name: str, *, cache_dir: str | os.PathLike[str] | None = None) -> ModelInfo:
    """Facts about a named model, and what this machine has of it.

    Raises:
        UnknownModelError: The name is not in the registry.
    """
    from huggingface_hub import constants

    info = find_model(name)
    if info.is_packaged:
        folder = PACKAGED / name
    else:
        try:
            root = cache_root(cache_dir)
        except DownloadError:  # nowhere to keep anything, so nothing is there
            return info
        folder = root / name
        info = replace(info, sha256=info.sha256 or recorded_hash(info, root))
    last_written = constants.SAFETENSORS_SINGLE_FILE if info.is_packaged else ORIGIN_FILE
    if not (folder / last_written).is_file():
        return info
    info = replace(info, on_disk=True, disk_bytes=sum(file.stat().st_size for file in folder.iterdir()))
    if not info.is_packaged:
        return replace(info, download_bytes=read_origin(folder)["zip_bytes"])
    text = (folder / constants.CONFIG_NAME).read_text(encoding="utf-8")
    encoder = ModelConfig.from_dict(json.loads(text)).encoder
    sizes = {field: getattr(encoder, field) for field in ("input_size", "patch_size", "embed_dim", "depth")}
    return replace(info, **sizes)
