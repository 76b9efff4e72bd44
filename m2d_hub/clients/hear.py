"""HEAR 2021: the common API that ``hear-validator`` and ``heareval`` call.

$ hear-validator m2d_hub.clients.hear
$ python -m heareval.embeddings.runner m2d_hub.clients.hear --tasks-dir tasks
$ python -m heareval.embeddings.runner m2d_hub.clients.hear --model FILE_OR_FOLDER

For onset tasks HEAR requires a timestamp every 50 ms or less; use weights with frames of 40 ms.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.hub import load_model as load_m2d
from m2d_hub.model import M2D
from m2d_hub.pretrained.registry import DEFAULT_MODEL


class HearModel(nn.Module):
    """A model with the attributes that HEAR reads, as plain integers."""

    def __init__(self, model: M2D):
        super().__init__()
        self.model = model
        self.sample_rate = model.sample_rate
        self.scene_embedding_size = model.frame_dim
        self.timestamp_embedding_size = model.frame_dim

    def forward(self, audio: Tensor) -> Tensor:
        """Map audio (B, S) to scene embeddings (B, D)."""
        return get_scene_embeddings(audio, self)


def load_model(model_file_path: str | os.PathLike[str] = "", **options: Any) -> HearModel:
    """Load a model on the CPU; HEAR moves it.

    Args:
        model_file_path: As for :func:`m2d_hub.load_model`; empty for ``m2d-mini``.
        **options: Other arguments of :func:`m2d_hub.load_model`.
    """
    return HearModel(load_m2d(model_file_path or DEFAULT_MODEL, **{"device": "cpu", **options})).eval()


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embed each time frame.

    Args:
        audio: (B, S) float32 at the model's sample rate.
        model: Result of :func:`load_model`.

    Returns:
        Embeddings (B, T, D) float32, and the centres of their frames (B, T) in milliseconds,
        float64.
    """
    with torch.no_grad():
        frames = model.model(audio.to(model.model.device))
    # float32 would be uneven by more than 1e-3 ms after 8 s; not every device supports float64.
    times_ms = frames.timestamps_s.double().cpu() * 1000
    return frames.features.float(), times_ms.expand(len(audio), -1)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Embed each clip, (B, D) float32; arguments as for :func:`get_timestamp_embeddings`."""
    embeddings, _ = get_timestamp_embeddings(audio, model)
    return embeddings.mean(dim=1)
