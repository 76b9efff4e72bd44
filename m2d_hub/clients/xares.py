"""X-ARES: an encoder for its tasks.

$ python -m xares.run m2d_hub/clients/xares.py src/tasks/esc50_task.py
>>> from m2d_hub.clients.xares import M2DEncoder
>>> XaresTask(config=task_config(encoder=M2DEncoder("m2d-as-0.7"))).run()

Pass the path exactly as above: X-ARES derives a module name from it. The environment variable
``M2D_XARES_MODEL`` replaces ``m2d-mini`` there.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from m2d_hub.audio.inputs import scaled
from m2d_hub.hub import load_model
from m2d_hub.pretrained.registry import DEFAULT_MODEL


class M2DEncoder(nn.Module):
    """Encode audio to frames; X-ARES moves the model to its device."""

    def __init__(self, name: str | os.PathLike[str] | None = None):
        """Load a model as :func:`m2d_hub.load_model` does."""
        super().__init__()
        self.model = load_model(name or os.environ.get("M2D_XARES_MODEL", DEFAULT_MODEL), device="cpu")
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.frame_dim
        self.hop_size_in_ms = round(1000 * self.model.frame_hop_s)

    def forward(self, audio: Tensor) -> Tensor:
        """Map audio (B, S) or (S,) at ``sampling_rate`` to frames (B, T, output_dim)."""
        with torch.no_grad():
            waveform = scaled(torch.atleast_2d(audio), "audio").to(self.model.device)
            return self.model(waveform).features
