"""A small model on disk for other programs."""

from __future__ import annotations

import pytest


@pytest.fixture
def folder(tiny_folder) -> str:
    """Folder of the small model, as a name for ``load_model``."""
    return str(tiny_folder)
