"""Shared fixtures: reference weights and signals, small models, real clips."""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import m2d_hub

from .parity import reference_weights

# Small models are not faster with several threads, and much slower on a busy machine.
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
TEXT_DIM = 16  # width of the small text encoder
PUBLISHED_NAME = "m2d_vit_base-80x608p16x16-000000-mr7"


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """Module with weights in the published layout and test signals."""
    return reference_weights


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real clips. Its README describes them."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def published_tensors(reference) -> Callable[..., dict[str, torch.Tensor]]:
    """Tensors of a published checkpoint: ``published_tensors(**sizes)``. They are made once per size."""
    made: dict[str, dict[str, torch.Tensor]] = {}

    def tensors(**sizes) -> dict[str, torch.Tensor]:
        key = repr(sorted(sizes.items()))
        if key not in made:
            made[key] = {
                name: torch.from_numpy(value) for name, value in reference.state_dict(**sizes).items()
            }
        return made[key]

    return tensors


@pytest.fixture
def publish(tmp_path, published_tensors):
    """Save a checkpoint in the published layout: ``publish(folder, prefix=…, **sizes)`` -> path."""

    def save(folder: str = PUBLISHED_NAME, *, prefix="", extra=None, args=None, wrap=True, **sizes) -> Path:
        tensors = {prefix + key: value for key, value in published_tensors(**sizes).items()} | (extra or {})
        path = tmp_path / folder / "checkpoint-300.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        wrapped = {"model": tensors, "args": argparse.Namespace(**(args or {})), "epoch": 300}
        torch.save(wrapped if wrap else tensors, path)
        return path

    return save


@pytest.fixture(scope="session")
def tiny_config() -> m2d_hub.ModelConfig:
    """Two blocks and windows of 2.08 s, with the published frontend."""
    return m2d_hub.ModelConfig(
        encoder=m2d_hub.EncoderConfig(input_size=(80, 208), embed_dim=64, depth=2), name="tiny"
    )


@pytest.fixture(scope="session")
def saved_tiny(tiny_config, tmp_path_factory) -> tuple[m2d_hub.M2D, Path]:
    """A model of ``tiny_config`` with fixed random weights, and its folder. Tests get copies of both."""
    torch.manual_seed(0)
    model = m2d_hub.M2D(tiny_config).eval()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def tiny(saved_tiny) -> m2d_hub.M2D:
    """A small model with fixed random weights, in eval mode."""
    torch.manual_seed(0)
    return copy.deepcopy(saved_tiny[0])


@pytest.fixture
def tiny_folder(saved_tiny, tmp_path) -> Path:
    """Folder of the same model."""
    return Path(shutil.copytree(saved_tiny[1], tmp_path / "tiny"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A transformers folder with a two-layer BERT: random weights, 13 words."""
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
