"""The door to parsers of files from outside: whatever they raise becomes one error that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from m2d_hub.errors import AudioError, M2DError


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
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise failure(f"{name} cannot be read as {what}: {reason}.") from error
