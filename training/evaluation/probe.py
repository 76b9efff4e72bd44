"""How well a linear layer tells classes apart on a model's features, as a check while it is trained."""

from __future__ import annotations

import logging

import torch

from m2d_hub.model import M2D

from .clip_encoder import ClipEncoder, encode_files
from .labelled import LabelledList
from .linear_layers import LEARNING_RATE, FitSettings
from .linear_rounds import fit_rounds

SEED = 42

logger = logging.getLogger(__name__)


def evaluate_encoder(model: M2D, labelled: LabelledList) -> float:
    """Score of a model's frozen features: whole clips, one seed, nothing written.

    Args:
        model: In eval mode, on the device that computes.
        labelled: Clips with labels; those that cannot be read are left out.
    """
    encoder = ClipEncoder(model)
    parts = list(encode_files(encoder, [clip.file for clip in labelled.clips], num_workers=2))
    errors = {place: reason for part in parts for place, reason in part.errors.items()}
    if errors:
        rows = {labelled.clips[place].row for place in errors}
        logger.warning("linear evaluation leaves out %d clips: %s", len(errors), next(iter(errors.values())))
        labelled = labelled.without(rows)
    features = torch.cat([part.features for part in parts if part.clips]).to(model.device)
    settings = FitSettings(labelled.is_multi_label, LEARNING_RATE)
    return float(fit_rounds("last", features, labelled, [SEED], settings).evaluation.by_round.mean())
