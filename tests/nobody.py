"""What a user without rights may do: root, who may do anything, acts as nobody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Acts as nobody, who may enter the folder and those above it; another user than root stays who it is."""
    if os.geteuid() != 0:
        yield
        return
    modes = {path: path.stat().st_mode for path in (folder, *folder.parents)}
    closed = {path: mode for path, mode in modes.items() if mode & 0o055 != 0o055}
    for path, mode in closed.items():
        path.chmod(mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in closed.items():
            path.chmod(mode)
