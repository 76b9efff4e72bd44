"""Files of a list that are not there, told before anything is read."""

from __future__ import annotations

import logging
import os

from .left_out import LeftOut, refuse_too_many
from .listing import FolderListing
from .manifest import Manifest

logger = logging.getLogger(__name__)


def tell_missing(manifest: Manifest) -> None:
    """Warns of clips whose file does not exist; they are left out where their turn comes.

    Raises:
        AudioError: They are more than half of the list.
    """
    listing, missing = FolderListing(), list[LeftOut]()
    for entry in manifest.entries:
        for file in (entry.path, entry.features_path):
            if file and not listing.has(os.fspath(file)):
                missing.append(LeftOut(entry.row, str(entry), f"{os.fspath(file)} does not exist."))
                break
    if missing:
        refuse_too_many(manifest.name, len(missing), len(manifest.entries), missing[0])
        logger.warning(
            "%s: %d of %d clips lack a file, the first in row %d: %s Paths are relative to the list.",
            manifest.name,
            len(missing),
            len(manifest.entries),
            missing[0].row,
            missing[0].error,
        )
