"""``OUT.errors.csv``: the files that a job could not read, and why."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from m2d_hub.corpus.folders import folder_of
from m2d_hub.corpus.sources import Source
from m2d_hub.corpus.stores import StoreUrl
from m2d_hub.errors import ConfigError

_HEAD = b"file,error\r\n"


class ErrorsFile:
    """The list beside an output, which is there where something could not be read."""

    def __init__(self, out: Path | StoreUrl):
        """Raises ConfigError where something else has its name."""
        # "." has the name of the folder that it is.
        if isinstance(out, Path) and (not out.name or out.name == ".."):
            out = Path(os.path.abspath(out))
        self._place = out.with_name((out.name or "root") + ".errors.csv")
        self._folder, self._is_new = folder_of(self._place.parent), True
        self._refuse_foreign()

    def __str__(self) -> str:
        return str(self._place)

    def begin(self) -> None:
        """Removes that of an earlier run."""
        self._folder.remove(self._place.name)

    def add(self, failed: Iterable[tuple[Source, str]]) -> None:
        """Lists files, each with its reason."""
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows([source.file, reason] for source, reason in failed)
        content = lines.getvalue().encode("utf-8", "backslashreplace")
        self._folder.append(self._place.name, _HEAD + content if self._is_new else content)
        self._is_new = False

    def finish(self) -> None:
        """Writes what is not yet written."""
        self._folder.flush()

    def _refuse_foreign(self) -> None:
        head = self._folder.first_bytes(self._place.name, len(_HEAD))
        if head not in (None, _HEAD):
            raise ConfigError(
                f"{self._place}, where files that cannot be read are listed, was not written by m2d-hub "
                "embed; move it away, or give another output."
            )
