"""Export of models as graphs from waveforms to embeddings, for any batch size and length.

Graphs include the frontend, with its transform as a convolution even if the model uses ``transform="fft"``.

>>> import m2d_hub
>>> from m2d_hub.export import export_onnx, frames_module
>>> model = m2d_hub.load_model("m2d-mini-tags", device="cpu")
>>> module = frames_module(model)  # (B, S) -> (B, T, N_F·D), for torch.export
>>> export_onnx(model, "tagger.onnx", outputs=("clip", "scores"))  # or m2d-hub export
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from m2d_hub.checks import require, require_choice
from m2d_hub.config import ModelConfig
from m2d_hub.errors import ConfigError
from m2d_hub.io import importing, replacing
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import Encoder, frames_to_tokens, mask_of_tokens
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.nn.head import Head
from m2d_hub.nn.windowed_encoder import WindowedEncoder

Output = Literal["frames", "mask", "clip", "scores", "text_space"]
Precision = Literal["float32", "float16", "int8"]
OUTPUTS: tuple[Output, ...] = ("frames", "mask", "clip", "scores", "text_space")
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
WAVEFORM, LENGTHS = "waveform", "lengths"
BATCH, SAMPLES = "batch", "samples"


class Exportable(Protocol):
    """The parts of :class:`m2d_hub.M2D` that are exported."""

    config: ModelConfig
    frontend: LogMelFrontend
    encoder: Encoder

    @property
    def is_int8(self) -> bool:
        """Whether the weights are 8-bit integers."""

    @property
    def labels(self) -> list[str] | None:
        """Class names."""

    def required_head(self) -> Head:
        """Return the head."""

    def required_clap(self) -> Clap:
        """Return the projections."""


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
        raise ConfigError(
            "A model with dtype='int8' cannot be exported; load it with the default dtype. For ONNX, use "
            "export_onnx(..., dtype='int8')."
        )
    with torch.device("meta"):
        windowed = WindowedEncoder(model.config.frontend, model.config.encoder)
    windowed.encoder = copy.deepcopy(model.encoder).to("cpu", torch.float32)
    windowed.stft_filters, windowed.mel_filters = model.frontend.filters()
    return windowed.eval()


class OutputsModule(nn.Module):
    """Waveform (B, S) and lengths (B,) to some of :data:`OUTPUTS`, in float32."""

    def __init__(self, model: Exportable, outputs: Sequence[Output]):
        super().__init__()
        self.outputs = outputs
        self.windowed = windowed_encoder(model)
        self.head = copy.deepcopy(model.required_head()).float() if "scores" in outputs else None
        self.clap = copy.deepcopy(model.required_clap()).float() if "text_space" in outputs else None

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs in the given order."""
        frames, mask = self.windowed(waveform, lengths)
        frames = frames.float()
        clip = frames.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        results = {"frames": frames, "mask": mask, "clip": clip}
        if self.head is not None:
            features = self.head.clip_input(clip).to(self.head.linear.weight.dtype)
            results["scores"] = self.head.scores(self.head(features)).float()
        if self.clap is not None:
            num_freq = self.windowed.encoder.config.grid[0]
            token_mask = mask_of_tokens(mask, num_freq) if self.clap.config.audio_blocks else None
            # Without blocks, the mean of the tokens suffices.
            tokens = frames_to_tokens(clip[:, None] if token_mask is None else frames, num_freq)
            projected = self.clap.project_audio(tokens.to(self.clap.logit_scale.dtype), token_mask)
            results["text_space"] = projected.float()
        return tuple(results[name] for name in self.outputs)


def export_onnx(
    model: Exportable,
    path: str | os.PathLike[str],
    outputs: Sequence[Output] = ("frames",),
    dtype: Precision = "float32",
) -> None:
    """Write an ONNX file that maps waveforms to embeddings, for any batch size and length.

    Inputs: ``waveform`` (batch, samples) float32, mono, from -1 to 1, at the model's sample rate; and, unless
    frames are the only output, ``lengths`` (batch,) int64, the number of samples of each clip. The metadata
    has the labels (JSON), the sample rate in Hz, the window and the distance of frames in seconds, and the
    licence and source of the weights.

    Args:
        model: A model on any device; it is copied.
        path: File to write, ``.onnx``.
        outputs: Outputs in order: ``frames`` (batch, T, N_F·D), zero after the end of each clip; ``mask``
            (batch, T), true for audio; ``clip`` (batch, N_F·D); ``scores`` (batch, classes) of the head, from
            0 to 1; ``text_space`` (batch, dim), the clip in the space shared with text.
        dtype: Precision of the weights: ``float32``, ``float16``, or ``int8`` (ONNX Runtime's dynamic
            quantisation of the linear layers). Inputs, outputs and the spectrogram are always float32.

    Raises:
        ConfigError: An output or precision is unknown, the model has no head, no projections or no fixed
            window, or a package of ``m2d-hub[onnx]`` is not installed.
    """
    require(len(outputs) > 0 and not isinstance(outputs, str), f"outputs must be a list, got {outputs!r}.")
    for output in outputs:
        require_choice("outputs", output, OUTPUTS)
    require_choice("dtype", dtype, PRECISIONS)
    with importing("onnx, onnxscript and onnxruntime", "ONNX export", "onnx"):
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    module = OutputsModule(model, outputs).eval()
    if dtype == "float16":
        module = module.half()
    window_samples = model.config.encoder.input_size[1] * model.config.frontend.hop_samples
    waveform = torch.zeros(2, 2 * window_samples + window_samples // 3)
    batch, samples = torch.export.Dim(BATCH), torch.export.Dim(SAMPLES)
    inputs = {WAVEFORM: waveform}
    dimensions = {WAVEFORM: {0: batch, 1: samples}}
    if tuple(outputs) != ("frames",):
        inputs[LENGTHS] = torch.tensor([waveform.shape[1], window_samples])
        dimensions[LENGTHS] = {0: batch}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: batch")  # both inputs have it
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dimensions,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program with dynamo=True.")
    with replacing(Path(path)) as partial, tempfile.TemporaryDirectory() as folder:
        exact = str(partial) if dtype != "int8" else str(Path(folder) / "float32.onnx")
        program.save(exact, external_data=False)
        if dtype == "int8":
            _quantize(exact, str(partial))
        graph = onnx.load(partial)
        onnx.helper.set_model_props(graph, _metadata(model))
        onnx.save(graph, partial)


def _quantize(source: str, target: str) -> None:
    """Convert the linear layers to 8-bit integers; the mel filters stay exact."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, source, skip_optimization=True, skip_symbolic_shape=True)
    graph = onnx.load(source).graph
    weights = {tensor.name for tensor in graph.initializer}
    linear = [
        node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    quantize_dynamic(source, target, nodes_to_quantize=linear, per_channel=True, weight_type=QuantType.QInt8)


def _metadata(model: Exportable) -> dict[str, str]:
    config = model.config
    return {
        "name": config.name or "",
        "sample_rate": str(config.frontend.sample_rate),
        "window_s": f"{config.encoder.input_size[1] * config.frontend.hop_s:g}",
        "frame_hop_s": f"{config.encoder.patch_size[1] * config.frontend.hop_s:g}",
        "labels": json.dumps(model.labels),
        "license": config.license or "",
        "source": config.source or "",
    }
