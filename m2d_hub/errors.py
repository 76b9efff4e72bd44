"""Exceptions of the package: each message says what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class M2DError(Exception):
    """Base class of the errors of this package."""


class UnknownModelError(M2DError):
    """A model name is not in the registry, a file or folder, or a Hugging Face repository."""


class DownloadError(M2DError):
    """Weights are not in the cache and could not be downloaded."""


class ChecksumError(M2DError):
    """The contents of a file differ from its recorded or published checksum."""


class CheckpointError(M2DError):
    """A checkpoint is unsafe, incomplete, of an unknown layout, or contains non-finite weights."""


class AudioError(M2DError):
    """Audio is unreadable, empty or non-finite, or has an unsupported shape or sample rate."""


class ConfigError(M2DError):
    """A setting is not allowed or contradicts another setting."""


def first_few(values: Sequence[object], max_shown: int = 8) -> str:
    """Return the first values and the number of further ones, for a message."""
    more = f" and {len(values) - max_shown:,} more" if len(values) > max_shown else ""
    return ", ".join(map(str, values[:max_shown])) + more


def reason_of(error: BaseException, max_length: int = 200) -> str:
    """Return the first line of another library's error message, without the full stop."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    text = str(getattr(error, "error_string", error))  # of libsndfile, without the file name
    return text.strip().partition("\n")[0].rstrip(".")[:max_length] or type(error).__name__
