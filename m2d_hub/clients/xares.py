"""X-ARES: a model as the encoder that its tasks take. It makes a module's name of the path, as it stands.

$ python -m xares.run m2d_hub/clients/xares.py src/tasks/esc50_task.py
>>> from m2d_hub.clients.xares import M2DEncoder
>>> XaresTask(config=task_config(encoder=M2DEncoder("m2d-as-0.7"))).run()

``M2D_XARES_MODEL`` names another model than ``m2d-mini`` for the first, which can give no argument.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from m2d_hub.audio.inputs import scaled
from m2d_hub.hub import load_model
from m2d_hub.pretrained.registry import DEFAULT_MODEL


class M2DEncoder(nn.Module):
    """Frames of an M2D model; X-ARES moves it to its device."""

    def __init__(self, name: str | os.PathLike[str] | None = None):
        """Loads what :func:`m2d_hub.load_model` takes."""
        super().__init__()
        self.model = load_model(name or os.environ.get("M2D_XARES_MODEL", DEFAULT_MODEL), device="cpu")
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.frame_dim
        self.hop_size_in_ms = round(1000 * self.model.frame_hop_s)

    def forward(self, audio: Tensor) -> Tensor:
        """Maps audio (B, S) or (S,) at ``sampling_rate`` to frames (B, T, output_dim)."""
        with torch.no_grad():
            waveform = scaled(torch.atleast_2d(audio), "audio").to(self.model.device)
            return self.model(waveform).features
