"""Models in Hugging Face repositories, by the name ``hf-hub:org/repo[@revision]``."""

from __future__ import annotations

import os
from pathlib import Path

from m2d_hub.errors import CheckpointError, ConfigError, DownloadError, M2DError, UnknownModelError, reason_of
from m2d_hub.io import storage_errors
from m2d_hub.pretrained.cache import is_offline
from m2d_hub.pretrained.folder import CONFIG_FILE, WEIGHTS_FILE

PREFIX = "hf-hub:"


def parse_name(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Repository and revision of a name.

    Raises:
        UnknownModelError: The name is not of the form.
        ConfigError: It names another revision than ``revision``.
    """
    repository, _, named = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or name.endswith("@"):
        raise UnknownModelError(
            f"{name!r} names no Hugging Face repository. "
            "Write 'hf-hub:org/repo' or 'hf-hub:org/repo@revision'."
        )
    if named and revision not in (None, named):
        raise ConfigError(
            f"{name!r} names revision {named!r}, but revision={revision!r} was given; keep one."
        )
    return repository, named or revision


def fetch_repository(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Folder with a repository's weights and configuration, in the Hugging Face cache.

    Raises:
        UnknownModelError: The name is not of the form.
        ConfigError: It names another revision than ``revision``.
        DownloadError: The repository does not exist, or cannot be fetched or stored.
        CheckpointError: It holds no model of this package.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    repository, revision = parse_name(name, revision)
    cache, offline = Path(cache_dir or constants.HF_HUB_CACHE), local_files_only or is_offline()
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
        raise _explain(error, repository, revision) from error
    return Path(paths[-1]).parent


def _explain(error: Exception, repository: str, revision: str | None) -> M2DError:
    from huggingface_hub import errors

    named = f"The Hugging Face repository {repository!r}"
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return DownloadError(
            f"{named} does not exist, or you have no access to it. "
            "Look at its name, and log in where it is private or gated: hf auth login."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{named} has no revision {revision!r}. Give a branch, a tag or a commit that it has."
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointError(
            f"{named} lacks {CONFIG_FILE} or {WEIGHTS_FILE}. Models that save_pretrained or push_to_hub of "
            "this package wrote have both."
        )
    reason = reason_of(error.__cause__ or error)
    return DownloadError(
        f"{named} is not in the cache and could not be fetched ({reason}). To go on offline, fetch it "
        f"on another machine (hf download {repository} --local-dir FOLDER) and give it: load_model('FOLDER')."
    )
