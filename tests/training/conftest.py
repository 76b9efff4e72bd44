"""Fixtures of the tests of trainings."""

from __future__ import annotations

import pytest
import torch

import m2d_hub


@pytest.fixture
def no_pictures(monkeypatch):
    """Leaves out the pictures of evaluations, which take longest where a training is short."""
    monkeypatch.setattr("m2d_training.evaluation.charts.save", lambda *_: None)


@pytest.fixture(scope="session")
def model(tmp_path_factory, tiny_config):
    """Folder of a tiny model with random weights, which no test writes to."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    m2d_hub.M2D(tiny_config).save_pretrained(folder)
    return folder
