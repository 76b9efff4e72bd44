"""The meaning of a model's name, decided once for every place where a model is named.

1. A path object is a path.
2. ``hf-hub:org/repo[@revision]`` is a Hugging Face repository.
3. A string with a separator (``./m2d-0.7``, ``runs/mine/export``, ``~/weights``) is a path.
4. Any other string is an alias of the table of models; if it is not, a file or folder of that name here.
5. ``random:`` before any of these means a network of that model's sizes with untrained weights; the sizes
   themselves may follow it too (``random:80x608p16x16``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m2d_hub.config import EncoderConfig, FrontendConfig, ModelConfig
from m2d_hub.errors import (
    CheckpointError,
    ChecksumError,
    ConfigError,
    DownloadError,
    M2DError,
    UnknownModelError,
    reason_of,
)
from m2d_hub.io import locked, plain_tensors, replacing_folder, storage_errors
from m2d_hub.nn.encoder import Encoder
from m2d_hub.pretrained.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_checkpoint
from m2d_hub.pretrained.published import read_weights
from m2d_hub.pretrained.registry import MODELS, ModelInfo, find_model
from m2d_hub.pretrained.release import fetch, read_origin, recorded_hash, verify, write_origin

PREFIX = "hf-hub:"
RANDOM = "random:"
SEED = 0  # of random weights: a name always means the same weights
PACKAGED = Path(__file__).parents[1] / "weights"
MAX_PATCHES = 1 << 18  # of a network with random weights; the largest published one has 1,520
_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")
_SIZES = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(p16k|p32k)?")


def resolve(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Return the folder or file of a model's weights; download them if necessary.

    The arguments are those of :func:`m2d_hub.load_model`; ``force_download`` downloads a repository again.

    Raises:
        UnknownModelError: There is nothing of that name.
        DownloadError: The weights could not be downloaded.
        ChecksumError: The weights on disk are not those that were recorded.
        CheckpointError: The repository or the release is not a model of this package.
        ConfigError: ``revision`` was given for something other than a repository, or ``name`` is not a name.
    """
    options: Any = {"cache_dir": cache_dir, "force_download": force_download, "token": token}
    if (word := _random_word(name)) is not None:
        config = stated_config(word) if revision is None else None
        if config is None:
            weights = resolve(word, revision=revision, local_files_only=local_files_only, **options)
            config = read_weights(weights).config
        return random_init(canonical_name(name), config, cache_root(cache_dir))
    if _is_repository(name):
        return _fetch_repository(
            os.fspath(name), revision, offline=local_files_only or is_offline(), **options
        )
    if revision is not None:
        raise ConfigError(
            f"revision={revision!r} is only for 'hf-hub:org/repo', but {os.fspath(name)!r} was given; "
            "omit it."
        )
    path = path_of(name)
    if path is None:
        info = find_model(os.fspath(name))
        if info.is_packaged:
            return _packaged(info)
        return fetch(info, cache_root(cache_dir), offline=local_files_only or is_offline())
    if not _exists(path):
        raise UnknownModelError(
            f"{os.fspath(name)[:200]} does not exist. Give a file or folder on disk, 'hf-hub:org/repo', or a "
            "name of list_models()."
        )
    return path


def resolve_pretrained(name: str | os.PathLike[str], **options: Any) -> Path:
    """Resolve a name; ``org/repo`` that is not on disk is a repository, as everywhere in Hugging Face."""
    path = path_of(name)
    if isinstance(name, str) and path is not None and not _exists(path):
        organisation, separator, repository = name.partition("/")
        if separator and organisation.strip(".~") and "/" not in repository:
            return resolve(PREFIX + name, **options)
    return resolve(name, **options)


def path_of(name: str | os.PathLike[str]) -> Path | None:
    """Return the path that a name means; None for an alias, an unknown name, or a repository."""
    if not isinstance(name, (str, os.PathLike)) or not isinstance(os.fspath(name), str):
        raise ConfigError(
            f"{name!r} is not a model name; give a string of list_models(), 'hf-hub:org/repo', or a path."
        )
    if isinstance(name, str) and (_is_repository(name) or _random_word(name) is not None or name in MODELS):
        return None
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # there is no such user, or no home
        path = path.expanduser()
    if not isinstance(name, str):
        return path
    has_separator = any(separator in name for separator in (os.sep, os.altsep) if separator)
    return path if has_separator or path.suffix in _WEIGHTS_SUFFIXES or _exists(path) else None


def canonical_name(name: str | os.PathLike[str]) -> str:
    """Return the name under which a model is recorded: the alias, the repository, or the absolute path."""
    if (word := _random_word(name)) is not None:
        return RANDOM + (word if stated_config(word) else canonical_name(word))
    path = path_of(name)
    return os.fspath(name) if path is None else os.path.abspath(path)


def as_argument(path: str | os.PathLike[str]) -> str:
    """Return a path as a string that is never an alias: ``./m2d-0.7``."""
    text = os.fspath(path)
    return text if path_of(text) is not None else os.path.join(os.curdir, text)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the cache: ``cache_dir``, else ``$HF_HOME/m2d_hub``.

    Raises:
        DownloadError: Neither is given, and this user has no home folder.
    """
    from huggingface_hub import constants

    try:
        if cache_dir is not None:
            return Path(cache_dir).expanduser()
        return Path(os.environ.get("HF_HOME") or constants.HF_HOME).expanduser() / "m2d_hub"
    except RuntimeError as error:
        raise DownloadError(
            "there is no home folder for downloaded weights; give load_model(..., cache_dir=FOLDER), or set "
            "the environment variable HF_HOME."
        ) from error


def is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` disables the network."""
    from huggingface_hub import constants

    set_later = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return constants.HF_HUB_OFFLINE or set_later


def model_info(name: str, *, cache_dir: str | os.PathLike[str] | None = None) -> ModelInfo:
    """Return facts about a named model, and its state on this machine.

    Raises:
        UnknownModelError: The name is not in the registry.
    """
    info = find_model(name)
    if info.is_packaged:
        folder = PACKAGED / name
        is_installed = (folder / WEIGHTS_FILE).is_file()
        return replace(info, on_disk=True, disk_bytes=_folder_bytes(folder)) if is_installed else info
    try:
        root = cache_root(cache_dir)
    except DownloadError:  # there is no cache, so the model is not on disk
        return info
    info = replace(info, sha256=info.sha256 or recorded_hash(info, root))
    try:
        size = read_origin(root / name).get("zip_bytes")
    except ChecksumError:  # not downloaded, or damaged: load_model says what to do
        return info
    return replace(info, on_disk=True, download_bytes=size, disk_bytes=_folder_bytes(root / name))


def stated_config(word: str) -> ModelConfig | None:
    """Return the sizes in a word such as 80x608p16x16, or of a published alias; None for all others."""
    if match := _SIZES.fullmatch(word):
        mels, frames, patch_mels, patch_frames = map(int, match.groups()[:4])
        rate = 32_000 if match[5] == "p32k" else 16_000
        encoder = EncoderConfig(input_size=(mels, frames), patch_size=(patch_mels, patch_frames))
    elif word in MODELS and not MODELS[word].is_packaged:
        info = MODELS[word]
        rate = info.sample_rate
        encoder = EncoderConfig(
            input_size=info.input_size,
            patch_size=info.patch_size,
            embed_dim=info.embed_dim,
            depth=info.depth,
        )
    else:
        return None
    return ModelConfig(FrontendConfig.for_sample_rate(rate, n_mels=encoder.input_size[0]), encoder)


def random_init(name: str, config: ModelConfig, root: Path) -> Path:
    """Return the folder of a network with random weights of a fixed seed, written at the first call.

    Raises:
        ConfigError: The network has more than ``MAX_PATCHES`` patches.
    """
    if (patches := config.encoder.grid[0] * config.encoder.grid[1]) > MAX_PATCHES:
        raise ConfigError(f"{name} has {patches:,} patches; a random network may have {MAX_PATCHES:,}.")
    config = replace(config, name=name, head=None, labels=None, clap=None, license=None, source=None)
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    folder = root / "random" / digest
    if not _is_intact(folder):
        with locked(root / ".locks" / f"random-{digest}.lock"), storage_errors(root):
            if not _is_intact(folder):  # another process may have written it
                _write_random(folder, config)
    return folder


def _write_random(folder: Path, config: ModelConfig) -> None:
    with plain_tensors(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.ModuleDict({"encoder": Encoder(config.encoder)})
    with replacing_folder(folder) as partial:
        save_checkpoint(partial, network.state_dict(), config)
        write_origin(partial, {})


def _is_intact(folder: Path) -> bool:
    try:
        verify(folder)
    except ChecksumError:
        return False
    return True


def _packaged(info: ModelInfo) -> Path:
    folder = PACKAGED / info.name
    if not (folder / WEIGHTS_FILE).is_file():
        raise DownloadError(
            f"The weights of {info.name!r} belong to this package, but {folder} does not contain them. "
            "Install the package again, or load another name of list_models()."
        )
    return folder


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _exists(path: Path) -> bool:
    """Return whether a path exists; False for names that the file system does not accept."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_repository(name: str | os.PathLike[str]) -> bool:
    return isinstance(name, str) and name.startswith(PREFIX)


def _random_word(name: str | os.PathLike[str]) -> str | None:
    """Return what follows ``random:``, or None."""
    return name.removeprefix(RANDOM) if isinstance(name, str) and name.startswith(RANDOM) else None


def _parsed_repository(name: str, revision: str | None) -> tuple[str, str | None]:
    repository, _, named = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or name.endswith("@"):
        raise UnknownModelError(
            f"{name!r} is not the name of a Hugging Face repository. "
            "Write 'hf-hub:org/repo' or 'hf-hub:org/repo@revision'."
        )
    if named and revision not in (None, named):
        raise ConfigError(
            f"{name!r} names revision {named!r}, but revision={revision!r} was given; keep one."
        )
    return repository, named or revision


def _fetch_repository(
    name: str,
    revision: str | None,
    *,
    offline: bool,
    cache_dir: str | os.PathLike[str] | None,
    force_download: bool,
    token: str | bool | None,
) -> Path:
    """Return the folder of a repository's weights and configuration in the Hugging Face cache."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    repository, revision = _parsed_repository(name, revision)
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    try:
        with storage_errors(cache):
            paths = [
                hf_hub_download(
                    repository,
                    file,
                    revision=revision,
                    cache_dir=cache,
                    local_files_only=offline,
                    force_download=force_download and not offline,
                    token=token,
                )
                for file in (CONFIG_FILE, WEIGHTS_FILE)
            ]
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise _repository_error(error, repository, revision) from error
    return Path(paths[-1]).parent


def _repository_error(error: Exception, repository: str, revision: str | None) -> M2DError:
    from huggingface_hub import errors

    named = f"The Hugging Face repository {repository!r}"
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return DownloadError(
            f"{named} does not exist, or you have no access to it. "
            "Check its name, and log in if it is private or gated: hf auth login."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{named} has no revision {revision!r}. Give one of its branches, tags or commits."
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointError(
            f"{named} lacks {CONFIG_FILE} or {WEIGHTS_FILE}, which save_pretrained and push_to_hub write."
        )
    return DownloadError(
        f"{named} is not in the cache and could not be downloaded ({reason_of(error.__cause__ or error)}). "
        f"To work offline, download it on another machine (hf download {repository} --local-dir FOLDER) and "
        "load the folder: load_model('FOLDER')."
    )
