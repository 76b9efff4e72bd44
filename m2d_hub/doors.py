"""The one door to files that may hold anything: what cannot be read is told in one way, by one error."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from m2d_hub.errors import M2DError, reason_of

SHOWN = 200  # characters of a name


@contextlib.contextmanager
def reading(name: object, kind: str, way_out: str, failure: type[M2DError]) -> Iterator[None]:
    """Reads something that may be damaged or foreign; parsers have many ways to say that they cannot.

    Args:
        name: Of the file, or of what is in it.
        kind: It is read as, with its article: "a picture".
        way_out: What to do if it cannot be, as a sentence.
        failure: The error that is raised.

    Raises:
        M2DError: What is raised inside, as a ``failure``; one of the package's own as it is.
        OSError: What is written meanwhile finds no room.
    """
    try:
        yield
    except M2DError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise failure(f"{name} cannot be read as {kind} ({reason_of(error)}). {way_out}") from error


@contextlib.contextmanager
def reading_file(
    path: str | os.PathLike[str], kind: str, way_out: str, failure: type[M2DError]
) -> Iterator[None]:
    """As :func:`reading`, of a file on disk, which is looked at before a library is.

    Raises:
        M2DError: As :func:`reading` and :func:`open_file`.
    """
    open_file(path, kind, failure).close()
    with reading(path, kind, way_out, failure):
        yield


def open_file(path: str | os.PathLike[str], kind: str, failure: type[M2DError]) -> BinaryIO:
    """Opens a regular file for its bytes; a pipe, which might never answer, is not opened.

    Args:
        path: The file.
        kind: What it should hold, with its article.
        failure: The error that is raised.

    Raises:
        M2DError: A ``failure``, where it is missing, forbidden, or no regular file.
    """
    problem = None
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
        problem = f"is a pipe or a device, not {kind}: write what it holds to a file"
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # or it may not even be looked into
            problem = f"is a folder, not {kind}"
    except (FileNotFoundError, NotADirectoryError):
        problem = f"does not exist: give {kind}"
    except (OSError, ValueError) as error:  # the latter: a name with a zero byte
        problem = f"cannot be opened ({getattr(error, 'strerror', error)}): look at its name and permissions"
    raise failure(f"{str(path)[:SHOWN]} {problem}.")
