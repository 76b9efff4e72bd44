"""Exceptions of the package: each message says what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class M2DError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownModelError(M2DError):
    """A model name is neither in the registry, nor a file or folder, nor a Hugging Face repository."""


class DownloadError(M2DError):
    """Weights could not be fetched, and are not in the cache."""


class ChecksumError(M2DError):
    """A file's contents are not those that were recorded or announced."""


class CheckpointError(M2DError):
    """A checkpoint is unsafe, incomplete, of an unknown layout, or holds non-finite weights."""


class AudioError(M2DError):
    """Audio is unreadable, empty, non-finite, or of a shape or rate that cannot be used."""


class ConfigError(M2DError):
    """A setting contradicts another one, or is outside what is allowed."""


def first_few(values: Sequence[object], most: int = 8) -> str:
    """The first values, for a message, and how many more there are."""
    more = f" and {len(values) - most:,} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def reason_of(error: BaseException, most: int = 200) -> str:
    """What an error of a library says, in a line without a full stop."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    text = str(getattr(error, "error_string", error))  # libsndfile's, without the file's name
    return text.strip().partition("\n")[0].rstrip(".")[:most] or type(error).__name__
