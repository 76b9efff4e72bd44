"""A small model on disk for other programs."""

from __future__ import annotations

import pytest


@pytest.fixture
def folder(tiny, tmp_path) -> str:
    """Where ``tiny`` is saved, as a name for ``load_model``."""
    tiny.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")
