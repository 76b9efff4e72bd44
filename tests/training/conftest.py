"""Fixtures of the tests of trainings."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_pictures(monkeypatch):
    """Leaves out the pictures of evaluations, which take longest where a training is short."""
    monkeypatch.setattr("m2d_training.evaluation.charts._save", lambda *_: None)
