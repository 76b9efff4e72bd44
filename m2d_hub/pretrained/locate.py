"""The meaning of a model's name, decided once for every place where a model is named.

1. A path object is a path.
2. ``hf-hub:org/repo[@revision]`` is a Hugging Face repository.
3. A string with a separator (``./m2d-0.7``, ``runs/mine/export``, ``~/weights``) is a path.
4. Any other string is an alias of the table of models; where it is none, a file or folder of that name here.
5. ``random:`` before any of these means a network of that model's sizes with untrained weights; sizes may
   follow it too (``random:80x608p16x16``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m2d_hub.errors import ConfigError, UnknownModelError
from m2d_hub.pretrained.registry import MODELS, find_model
from m2d_hub.pretrained.release import fetch
from m2d_hub.pretrained.repository import PREFIX, fetch_repository
from m2d_hub.pretrained.untrained import UNTRAINED, told_config, untrained_folder
from m2d_hub.pretrained.weights import read_weights

_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")


def locate(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Folder or file of a model's weights, fetched first if need be.

    Args:
        name: See above.
        cache_dir: Where downloads are kept.
        revision: Branch, tag or commit of a Hugging Face repository.
        local_files_only: Use what is on disk; never the network.
        force_download: Fetch a repository's files again.
        token: For private repositories; None: the one that ``hf auth login`` kept.

    Raises:
        UnknownModelError: There is nothing of that name.
        DownloadError: The weights could not be fetched.
        ChecksumError: The weights on disk are not those that were recorded.
        CheckpointError: The repository or the release holds no model of this package.
        ConfigError: ``revision`` was given for something else than a repository, or ``name`` is no name.
    """
    if (word := _untrained_word(name)) is not None:
        config = told_config(word) if revision is None else None
        if config is None:
            config = read_weights(
                locate(
                    word,
                    cache_dir=cache_dir,
                    revision=revision,
                    local_files_only=local_files_only,
                    force_download=force_download,
                    token=token,
                )
            ).config
        return untrained_folder(canonical_name(name), config, cache_dir=cache_dir)
    if _is_repository(name):
        return fetch_repository(
            os.fspath(name),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            token=token,
        )
    if revision is not None:
        raise ConfigError(
            f"revision={revision!r} goes with 'hf-hub:org/repo' only, but {os.fspath(name)!r} was given; "
            "leave it out."
        )
    path = path_of(name)
    if path is None:
        return fetch(find_model(os.fspath(name)), cache_dir=cache_dir, local_files_only=local_files_only)
    if not _exists(path):
        raise UnknownModelError(
            f"{os.fspath(name)[:200]} does not exist. Give a file or folder on disk, 'hf-hub:org/repo', or a "
            "name of list_models()."
        )
    return path


def locate_pretrained(name: str | os.PathLike[str], **options: Any) -> Path:
    """As :func:`locate`, but ``org/repo`` that is not on disk is a repository, as everywhere in Hugging Face.

    Args:
        name: As for :func:`locate`; or ``org/repo[@revision]``.
        **options: Of :func:`locate`.
    """
    path = path_of(name)
    if isinstance(name, str) and path is not None and not _exists(path):
        organisation, separator, repository = name.partition("/")
        if separator and organisation.strip(".~") and "/" not in repository:
            return locate(PREFIX + name, **options)
    return locate(name, **options)


def path_of(name: str | os.PathLike[str]) -> Path | None:
    """The path that a name means; None: it is an alias, an unknown name, or a repository."""
    if not isinstance(name, (str, os.PathLike)) or not isinstance(os.fspath(name), str):
        raise ConfigError(
            f"{name!r} is no name of a model: give a string of list_models(), 'hf-hub:org/repo', or a path."
        )
    if isinstance(name, str) and (
        _is_repository(name) or _untrained_word(name) is not None or name in MODELS
    ):
        return None
    path = _expanded(Path(name))
    if not isinstance(name, str):
        return path
    has_separator = any(separator in name for separator in (os.sep, os.altsep) if separator)
    return path if has_separator or path.suffix in _WEIGHTS_SUFFIXES or _exists(path) else None


def canonical_name(name: str | os.PathLike[str]) -> str:
    """The name under which a model is recorded: the alias, the repository, or the absolute path."""
    if (word := _untrained_word(name)) is not None:
        return UNTRAINED + (word if told_config(word) else canonical_name(word))
    path = path_of(name)
    return os.fspath(name) if path is None else os.path.abspath(path)


def as_argument(path: str | os.PathLike[str]) -> str:
    """A path as a string that no place takes for an alias: ``./m2d-0.7``."""
    text = os.fspath(path)
    return text if path_of(text) is not None else os.path.join(os.curdir, text)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user, or no home
        return path


def _exists(path: Path) -> bool:
    """Whether there is something; False for names that the file system does not take."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_repository(name: str | os.PathLike[str]) -> bool:
    return isinstance(name, str) and name.startswith(PREFIX)


def _untrained_word(name: str | os.PathLike[str]) -> str | None:
    """What follows ``random:``; None: the name does not begin so."""
    return name.removeprefix(UNTRAINED) if isinstance(name, str) and name.startswith(UNTRAINED) else None
