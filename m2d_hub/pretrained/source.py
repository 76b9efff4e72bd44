"""The meaning of a model's name, decided once for every place where a model is named.

1. A path object is a path.
2. ``hf-hub:org/repo[@revision]`` is a Hugging Face repository.
3. A string with a separator (``./m2d-0.7``, ``runs/mine/export``, ``~/weights``) is a path.
4. Any other string is an alias of the table of models; if it is not, a file or folder of that name here.
5. ``random:`` before any of these means a network of that model's sizes with untrained weights; the sizes
   themselves may follow it too (``random:80x608p16x16``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from m2d_hub.config import EncoderConfig, FrontendConfig, ModelConfig
from m2d_hub.errors import (
    CheckpointError,
    ChecksumError,
    ConfigError,
    DownloadError,
    UnknownModelError,
    reason_of,
)
from m2d_hub.io import locked, plain_tensors, replacing_folder, storage_errors
from m2d_hub.nn.encoder import Encoder
from m2d_hub.pretrained.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_checkpoint
from m2d_hub.pretrained.published import read_weights
from m2d_hub.pretrained.registry import MODELS, ModelInfo, find_model
from m2d_hub.pretrained.release import fetch, read_origin, recorded_hash

PREFIX = "hf-hub:"
RANDOM = "random:"
SEED = 0  # of random weights: a name always means the same weights
PACKAGED = Path(__file__).parents[1] / "weights"
MAX_PATCHES = 1 << 18  # of a network with random weights; the largest published one has 1,520
_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")
_SIZES = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(p16k|p32k)?")
_REPOSITORY = re.compile(r"hf-hub:([^/@]+/[^/@]+)(?:@(.+))?")


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
    path, text = path_of(name), os.fspath(name)
    if path is None and text.startswith(PREFIX):
        return _fetch_repository(text, revision, local_files_only, cache_dir, force_download, token)
    if revision is not None:
        raise ConfigError(
            f"revision={revision!r} is only for 'hf-hub:org/repo', but {text!r} was given; omit it."
        )
    if path is not None:
        if not os.path.exists(path):
            raise UnknownModelError(
                f"{text[:200]} does not exist. Give a file or folder on disk, 'hf-hub:org/repo', or a name "
                "of list_models()."
            )
        return path
    if text.startswith(RANDOM):
        word = text.removeprefix(RANDOM)
        config = stated_config(word)
        if config is None:
            found = resolve(word, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
            config = read_weights(found).config
        return random_init(canonical_name(name), config, cache_root(cache_dir))
    info = find_model(text)
    if info.is_packaged:
        return PACKAGED / text
    return fetch(info, cache_root(cache_dir), offline=local_files_only or _is_offline())


def resolve_pretrained(name: str | os.PathLike[str], **options: object) -> Path:
    """Resolve a name; ``org/repo`` that is not on disk is a repository, as everywhere in Hugging Face."""
    if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not os.path.exists(name):
        name = PREFIX + name
    return resolve(name, **options)  # type: ignore[arg-type]


def path_of(name: str | os.PathLike[str]) -> Path | None:
    """Return the path that a name means; None for an alias, an unknown name, or a repository."""
    if not isinstance(name, (str, os.PathLike)) or not isinstance(os.fspath(name), str):
        raise ConfigError(
            f"{name!r} is not a model name; give a string of list_models(), 'hf-hub:org/repo', or a path."
        )
    path = Path(os.path.expanduser(name))
    if not isinstance(name, str):
        return path
    if name.startswith((PREFIX, RANDOM)) or name in MODELS:
        return None
    has_separator = any(separator in name for separator in (os.sep, os.altsep) if separator)
    return path if has_separator or path.suffix in _WEIGHTS_SUFFIXES or os.path.exists(path) else None


def canonical_name(name: str | os.PathLike[str]) -> str:
    """Return the name under which a model is recorded: the alias, the repository, or the absolute path."""
    path, text = path_of(name), os.fspath(name)
    if path is not None:
        return os.path.abspath(path)
    word = text.removeprefix(RANDOM)
    return text if word == text or stated_config(word) else RANDOM + canonical_name(word)


def as_argument(path: str | os.PathLike[str]) -> str:
    """Return a path as a string that is never an alias: ``./m2d-0.7``."""
    text = os.fspath(path)
    return text if path_of(text) is not None else os.path.join(os.curdir, text)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the cache: ``cache_dir``, else ``$HF_HOME/m2d_hub``."""
    from huggingface_hub import constants

    default = os.path.join(os.environ.get("HF_HOME") or constants.HF_HOME, "m2d_hub")
    return Path(os.path.expanduser(cache_dir or default))


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def model_info(name: str, *, cache_dir: str | os.PathLike[str] | None = None) -> ModelInfo:
    """Return facts about a named model, and its state on this machine.

    Raises:
        UnknownModelError: The name is not in the registry.
    """
    info = find_model(name)
    folder = PACKAGED / name
    if not info.is_packaged:
        folder = cache_root(cache_dir) / name
        info = replace(info, sha256=info.sha256 or recorded_hash(info, folder.parent))
        try:
            info = replace(info, download_bytes=read_origin(folder).get("zip_bytes"))
        except ChecksumError:  # not downloaded, or damaged: load_model says what to do
            return info
    return replace(info, on_disk=True, disk_bytes=sum(file.stat().st_size for file in folder.iterdir()))


def stated_config(word: str) -> ModelConfig | None:
    """Return the sizes in a word such as 80x608p16x16, or of a published alias; None for all others."""
    if match := _SIZES.fullmatch(word):
        mels, frames, patch_mels, patch_frames = map(int, match.groups()[:4])
        rate = 32_000 if match[5] == "p32k" else 16_000
        encoder = EncoderConfig(input_size=(mels, frames), patch_size=(patch_mels, patch_frames))
    elif word in MODELS and not MODELS[word].is_packaged:
        rate = MODELS[word].sample_rate
        encoder = EncoderConfig(input_size=MODELS[word].input_size, patch_size=MODELS[word].patch_size)
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
    if not folder.is_dir():
        with locked(root / ".locks" / f"random-{digest}.lock"), storage_errors(root):
            if not folder.is_dir():  # another process may have written it
                _write_random(folder, config)
    return folder


def _write_random(folder: Path, config: ModelConfig) -> None:
    with plain_tensors(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.ModuleDict({"encoder": Encoder(config.encoder)})
    with replacing_folder(folder) as partial:
        save_checkpoint(partial, network.state_dict(), config)


def _fetch_repository(
    name: str,
    revision: str | None,
    local_files_only: bool,
    cache_dir: str | os.PathLike[str] | None,
    force_download: bool,
    token: str | bool | None,
) -> Path:
    """Return the folder of a repository's weights and configuration in the Hugging Face cache."""
    from huggingface_hub import constants, errors, hf_hub_download

    match = _REPOSITORY.fullmatch(name)
    if match is None:
        raise UnknownModelError(
            f"{name!r} is not the name of a Hugging Face repository. "
            "Write 'hf-hub:org/repo' or 'hf-hub:org/repo@revision'."
        )
    repository, named = match.groups()
    if named and revision not in (None, named):
        raise ConfigError(
            f"{name!r} names revision {named!r}, but revision={revision!r} was given; keep one."
        )
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    try:
        with storage_errors(cache):
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                path = hf_hub_download(
                    repository,
                    file,
                    revision=named or revision,
                    cache_dir=cache,
                    local_files_only=local_files_only or _is_offline(),
                    force_download=force_download and not _is_offline(),
                    token=token,
                )
    except errors.RemoteEntryNotFoundError as error:
        raise CheckpointError(
            f"The Hugging Face repository {repository!r} lacks {CONFIG_FILE} or {WEIGHTS_FILE}, which "
            "save_pretrained and push_to_hub write."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise DownloadError(
            f"The Hugging Face repository {repository!r} is not in the cache and could not be downloaded "
            f"({reason_of(error.__cause__ or error)}). Check its name and revision, and your access (hf auth "
            f"login). To work offline, download it on another machine (hf download {repository} --local-dir "
            "FOLDER) and load the folder: load_model('FOLDER')."
        ) from error
    return Path(path).parent
