"""The doors to files that may hold anything: what a parser raises becomes one error that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from m2d_hub.errors import AudioError, CheckpointError, M2DError


@contextlib.contextmanager
def reading(name: object, what: str, failure: type[M2DError] = AudioError) -> Iterator[None]:
    """Reads a file that may hold anything; parsers have many ways to say that they cannot read it.

    Args:
        name: Of the file, for the message.
        what: It is read as.
        failure: The error that is raised.

    Raises:
        M2DError: What is raised inside, as a ``failure``; one of the package's own as it is.
    """
    try:
        yield
    except M2DError:
        raise
    except Exception as error:
        raise failure(f"{name} cannot be read as {what}: {_reason(error)}.") from error


@contextlib.contextmanager
def reading_own(path: object, way_out: str) -> Iterator[None]:
    """Reads a file that this package wrote, and that a full disk or another program may have spoiled since.

    Args:
        path: The file.
        way_out: What to do if it is damaged, as a sentence.

    Raises:
        CheckpointError: It is; one of the package's own errors as it is.
    """
    try:
        yield
    except M2DError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({_reason(error)}). {way_out}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
