"""Export of models as graphs that map waveforms to frames, for any batch size and length.

Graphs include the frontend, with its transform as a convolution even if the model uses ``transform="fft"``.

>>> import m2d_hub
>>> from m2d_hub.export import export_onnx, frames_module
>>> model = m2d_hub.load_model("m2d-mini", device="cpu")
>>> module = frames_module(model)  # (B, S) -> (B, T, N_F·D), for torch.export
>>> export_onnx(model, "m2d-mini.onnx")  # or m2d-hub export m2d-mini --onnx m2d-mini.onnx
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from m2d_hub.config import ModelConfig
from m2d_hub.errors import ConfigError
from m2d_hub.io import importing, replacing
from m2d_hub.nn.encoder import Encoder
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.nn.windowed_encoder import WindowedEncoder

INPUT, OUTPUT = "waveform", "frames"
BATCH, SAMPLES = "batch", "samples"


class Exportable(Protocol):
    """The parts of :class:`m2d_hub.M2D` that are exported."""

    config: ModelConfig
    frontend: LogMelFrontend
    encoder: Encoder

    @property
    def is_int8(self) -> bool:
        """Whether the weights are 8-bit integers."""


class FramesModule(nn.Module):
    """Waveform (B, S) to frames (B, T, N_F·D): the features of :meth:`m2d_hub.M2D.forward`."""

    def __init__(self, windowed: WindowedEncoder):
        super().__init__()
        self.windowed = windowed

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, S) at the model's sample rate to frames (B, T, N_F·D)."""
        return self.windowed(waveform)[0]


def frames_module(model: Exportable) -> FramesModule:
    """Return a module for ``torch.export`` with dynamic batch size and length, on the CPU, in float32.

    Args:
        model: A model on any device; it is copied.

    Raises:
        ConfigError: The model has no fixed window, or its weights are 8-bit integers.
    """
    return FramesModule(windowed_encoder(model)).eval()


def windowed_encoder(model: Exportable) -> WindowedEncoder:
    """Return the filters and a copy of the encoder in one module; arguments as for :func:`frames_module`."""
    if model.config.own_length_windows:
        raise ConfigError(
            "A model without a fixed window cannot be exported; set one with "
            "load_model(..., window_s=SECONDS) or model.set_window(SECONDS)."
        )
    if model.is_int8:
        raise ConfigError("A model with dtype='int8' cannot be exported; load it with the default dtype.")
    with torch.device("meta"):
        windowed = WindowedEncoder(model.config.frontend, model.config.encoder)
    windowed.encoder = copy.deepcopy(model.encoder).to("cpu", torch.float32)
    windowed.stft_filters, windowed.mel_filters = model.frontend.filters()
    return windowed.eval()


def export_onnx(model: Exportable, path: str | os.PathLike[str]) -> None:
    """Write an ONNX file with input ``waveform`` (batch, samples) and output ``frames`` (batch, T, N_F·D).

    Args:
        model: A model on any device; it is copied.
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
        raise RuntimeError("torch.onnx.export returned no program with dynamo=True.")
    with replacing(Path(path)) as partial:
        program.save(str(partial), external_data=False)
