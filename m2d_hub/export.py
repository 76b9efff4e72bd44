"""Models as graphs: waveform in, frames out, the frontend included, for any batch size and length.

Graphs hold the frontend's transform as a convolution, whichever the model computes it by.

>>> import m2d_hub
>>> from m2d_hub.export import export_onnx, frames_module
>>> model = m2d_hub.load_model("m2d-mini", device="cpu")
>>> module = frames_module(model)  # (B, S) -> (B, T, N_F·D), for torch.export
>>> export_onnx(model, "m2d-mini.onnx")  # or m2d-hub export m2d-mini --onnx m2d-mini.onnx
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.io import importing, replacing
from m2d_hub.nn.windowed_encoder import WindowedEncoder

if TYPE_CHECKING:
    from m2d_hub.model import M2D

INPUT, OUTPUT = "waveform", "frames"
BATCH, SAMPLES = "batch", "samples"


class FramesModule(nn.Module):
    """Waveform (B, S) to frames (B, T, N_F·D): the features of :meth:`m2d_hub.M2D.forward`."""

    def __init__(self, windowed: WindowedEncoder):
        super().__init__()
        self.windowed = windowed

    def forward(self, waveform: Tensor) -> Tensor:
        """Maps waveforms (B, S) at the model's sample rate to frames (B, T, N_F·D)."""
        return self.windowed(waveform)[0]


def frames_module(model: M2D) -> FramesModule:
    """A plain module for ``torch.export`` with dynamic batch and length, on the CPU, in float32.

    Args:
        model: On any device; a copy is exported.

    Raises:
        ConfigError: The model has no fixed window, or its weights are rounded to 8 bits.
    """
    return FramesModule(windowed_encoder(model)).eval()


def windowed_encoder(model: M2D) -> WindowedEncoder:
    """A model's filters and a copy of its encoder in one module; arguments as for :func:`frames_module`."""
    if math.isinf(model.window_s):
        raise ConfigError(
            "a graph has windows of one length, but this model takes each clip as one window: give it a "
            "length in seconds by load_model(..., window_s=...) or model.set_window(...)."
        )
    if model.is_int8:
        raise ConfigError("a model of dtype='int8' is not exported; load it with the default dtype.")
    with torch.device("meta"):
        windowed = WindowedEncoder(model.config.frontend, model.config.encoder)
    windowed.encoder = copy.deepcopy(model.encoder).to("cpu", torch.float32)
    windowed.stft_filters, windowed.mel_filters = model.frontend.filters()
    return windowed.eval()


def export_onnx(model: M2D, path: str | os.PathLike[str]) -> None:
    """Writes an ONNX file with input ``waveform`` (batch, samples) and output ``frames`` (batch, T, N_F·D).

    Args:
        model: On any device; a copy is exported.
        path: File to write, ``.onnx``.

    Raises:
        ConfigError: As for :func:`frames_module`, or onnx and onnxscript are not installed.
    """
    with importing("onnx and onnxscript", "ONNX export", "onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    module = frames_module(model)
    window_samples = (
        module.windowed.encoder.config.input_size[1] * module.windowed.frontend_config.hop_samples
    )
    example = torch.zeros(2, 2 * window_samples + window_samples // 3)
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim(BATCH), 1: torch.export.Dim(SAMPLES)}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program, though dynamo=True was asked for.")
    with replacing(Path(path)) as partial:
        program.save(str(partial), external_data=False)
