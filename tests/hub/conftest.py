"""A local release server for the tests of names and downloads."""

from __future__ import annotations

import huggingface_hub.file_download
import pytest

from .release_server import ReleaseServer


@pytest.fixture
def release_host(monkeypatch):
    """An empty release server, set as the mirror. Downloads are retried without a delay."""
    with ReleaseServer() as running:
        monkeypatch.setenv("M2D_HUB_MIRROR", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
        yield running
