"""Linear evaluation: how well one linear layer tells classes apart on frozen, standardised features.

Shapes: N clips, K features, C classes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D

from .checkpoint import model_config, model_tensors
from .config import PretrainConfig

LEARNING_RATE = 3e-5
MAX_EPOCHS = 200
PATIENCE = 20  # epochs without a better validation score
BATCH_SIZE = 128
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LabelledSplit:
    """Clips of one split with their classes."""

    files: list[str]
    classes: Tensor  # (N,) int64


@dataclass(frozen=True)
class Features:
    """Features of one split with their classes."""

    values: Tensor  # (N, K)
    classes: Tensor  # (N,)


def read_labelled(path: str) -> tuple[dict[str, LabelledSplit], int]:
    """Reads a CSV with ``file`` (relative to it), ``label`` and ``split`` (train, valid or test).

    Returns:
        The splits and the number of classes.

    Raises:
        ConfigError: A column or a split is missing.
    """
    with open(path, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        missing = {"file", "label", "split"} - set(reader.fieldnames or [])
        if missing:
            raise ConfigError(f"{path} lacks the columns {sorted(missing)}; it has {reader.fieldnames}.")
        rows = list(reader)
    names = sorted({row["label"] for row in rows})
    splits = {}
    for split in SPLITS:
        inside = [row for row in rows if row["split"] == split]
        if not inside:
            raise ConfigError(f"{path} has no clip in the split {split!r}; train, valid and test are needed.")
        classes = torch.tensor([names.index(row["label"]) for row in inside])
        splits[split] = LabelledSplit([str(Path(path).parent / row["file"]) for row in inside], classes)
    return splits, len(names)


def fit_linear(train: Features, valid: Features, test: Features, num_classes: int, seed: int = 42) -> float:
    """Accuracy of one linear layer on the test split (paper, section IV-B: Adam, early stopping).

    Args:
        train: Fits the layer and the standardisation.
        valid: Chooses the epoch.
        test: Gives the answer.
        num_classes: C.
        seed: Of the layer's weights and the batches' order.
    """
    mean, std = train.values.mean(dim=0), train.values.std(dim=0) + 1e-6
    inputs, held_out, unseen = ((split.values - mean) / std for split in (train, valid, test))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(num_classes, inputs.shape[1]).normal_(0, 0.01, generator=generator).requires_grad_()
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    best, answer, waited = -1.0, 0.0, 0
    for _ in range(MAX_EPOCHS):
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH_SIZE):
            loss = F.cross_entropy(F.linear(inputs[rows], weight, bias), train.classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            score = _accuracy(F.linear(held_out, weight, bias), valid.classes)
            waited = 0 if score > best else waited + 1
            if score > best:
                best, answer = score, _accuracy(F.linear(unseen, weight, bias), test.classes)
        if waited >= PATIENCE:
            break
    return answer


def _accuracy(logits: Tensor, classes: Tensor) -> float:
    return float((logits.argmax(dim=1) == classes).float().mean())


def evaluate_encoder(state: dict[str, Tensor], config: PretrainConfig, labelled: str) -> float:
    """Test accuracy of a pre-training model's encoder on a labelled list.

    Args:
        state: State dict of the pre-training model.
        config: Its configuration.
        labelled: CSV, see :func:`read_labelled`.
    """
    splits, num_classes = read_labelled(labelled)
    model = M2D(model_config(config, "pretraining")).eval()
    model.load_state_dict(model_tensors(state))
    features = {
        name: Features(model.encode_clip(split.files), split.classes) for name, split in splits.items()
    }
    return fit_linear(features["train"], features["valid"], features["test"], num_classes)
