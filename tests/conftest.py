"""Fixtures shared by the tests: reference weights and signals, small models, real clips."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest
import torch

import m2d_hub

from .parity import reference_weights

# Small models gain nothing from threads, and lose much where other processes are busy.
torch.set_num_threads(1)

TESTS = Path(__file__).parent
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "dog",
    "barks",
    "rain",
    "falls",
    "on",
    "the",
    "roof",
]
TEXT_DIM = 16  # of the small text encoder
PUBLISHED_NAME = "m2d_vit_base-80x608p16x16-000000-mr7"


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """tests/parity/reference_weights.py: weights in the published layout, and test signals."""
    return reference_weights


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real clips, described in its README."""
    return TESTS / "data"


@pytest.fixture
def publish(tmp_path, reference):
    """Saves a checkpoint in the published layout: ``publish(folder, prefix=…, **sizes)`` -> path."""

    def save(folder: str = PUBLISHED_NAME, *, prefix="", extra=None, args=None, wrap=True, **sizes) -> Path:
        tensors = {
            prefix + key: torch.from_numpy(value) for key, value in reference.state_dict(**sizes).items()
        }
        tensors |= extra or {}
        path = tmp_path / folder / "checkpoint-300.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        wrapped = {"model": tensors, "args": argparse.Namespace(**(args or {})), "epoch": 300}
        torch.save(wrapped if wrap else tensors, path)
        return path

    return save


@pytest.fixture(scope="session")
def tiny_config() -> m2d_hub.ModelConfig:
    """A two-block model of 2.08 s windows, with the published frontend."""
    return m2d_hub.ModelConfig(
        encoder=m2d_hub.EncoderConfig(input_size=(80, 208), embed_dim=64, depth=2), name="tiny"
    )


@pytest.fixture
def tiny_folder(tiny, tmp_path) -> Path:
    """``tiny``, saved."""
    tiny.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def tiny(tiny_config) -> m2d_hub.M2D:
    """A model of ``tiny_config`` with fixed random weights, in eval mode."""
    torch.manual_seed(0)
    return m2d_hub.M2D(tiny_config).eval()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A BERT of two layers with random weights and a vocabulary of 13 words, as a transformers folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("text_encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder
