"""``load_model``: load a model by name, folder or file, in eval mode."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch

from m2d_hub.errors import ConfigError, reason_of
from m2d_hub.io import plain_tensors
from m2d_hub.model import M2D
from m2d_hub.nn.encoder import compile_blocks
from m2d_hub.nn.int8_linear import quantize_encoder
from m2d_hub.pretrained.published import read_weights
from m2d_hub.pretrained.source import resolve

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, "int8")


def load_model(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Literal["int8"] = torch.float32,
    window_s: float | None = None,
    num_classes: int | None = None,
    mean: float | None = None,
    std: float | None = None,
    sample_rate: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    compile: bool = False,
) -> M2D:
    """Load a pre-trained model, in eval mode.

    Args:
        name: An alias of :func:`m2d_hub.list_models`; a folder or file on disk (this package's folder,
            ``.safetensors``, a published ``.pth``, a training run's checkpoint); or
            ``"hf-hub:org/repo[@revision]"``. A path object, or a string with a separator, is always a path:
            ``"./m2d-0.7"`` is a folder, ``"m2d-0.7"`` the alias. ``"random:"`` before any of these, or before
            sizes (``"random:80x608p16x16"``), means a network of these sizes with untrained weights.
        device: None: CUDA if available, else MPS, else the CPU.
        dtype: torch.float32, torch.bfloat16, torch.float16 (on a CPU replaced by float32, which is faster
            there, with a warning), or ``"int8"`` (linear layers, on a CPU).
        window_s: Seconds that the encoder processes at once. None: as pre-trained; longer: positions are
            interpolated; shorter: cut; infinity: one window of each input's own length.
        num_classes: Add a new, untrained head, unless the weights have one of that size.
        mean: Mean of the log-mel values of your data, for standardisation (``m2d-train statistics`` measures
            it); None: the pre-training set's.
        std: Standard deviation of the log-mel values of your data; None: the pre-training set's.
        sample_rate: Hz, only for a published file in a renamed folder, without the rate in its settings.
        cache_dir: Folder for downloads and converted weights.
        revision: Branch, tag or commit of a Hugging Face repository.
        local_files_only: Never use the network.
        token: For private Hugging Face repositories; None: the one saved by ``hf auth login``.
        compile: Compile the encoder's blocks with ``torch.compile`` when they first run: this takes minutes
            for clips of many lengths, and is faster on GPUs afterwards. Weights, names and exports are
            unchanged.

    Returns:
        The model on ``device``, in eval mode.

    Raises:
        UnknownModelError: There is no model of that name.
        DownloadError: The weights could not be downloaded.
        ChecksumError: The weights on disk are not those that were recorded.
        CheckpointError: The weights are unsafe, damaged, non-finite, or of an unknown layout.
        ConfigError: A setting is not allowed, or a required one is missing.
    """
    if dtype not in _DTYPES:
        raise ConfigError(
            f"dtype must be torch.float32, torch.bfloat16, torch.float16 or 'int8', got {dtype!r}."
        )
    if compile and dtype == "int8":
        raise ConfigError(
            "compile=True is for floating-point weights, but dtype='int8' was given; omit one of them."
        )
    device = _usable_device(device, dtype)
    if dtype is torch.float16 and device.type == "cpu":
        warnings.warn(
            "float16 is several times slower than float32 on a CPU, so the model is loaded in float32; use "
            "torch.bfloat16 on processors with AVX512-BF16 or AMX, or dtype='int8'.",
            stacklevel=2,
        )
        dtype = torch.float32
    path = resolve(
        name, cache_dir=cache_dir, revision=revision, local_files_only=local_files_only, token=token
    )
    read_as = torch.float32 if dtype in (torch.float32, "int8") else None  # else .to() converts
    given: Any = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    with plain_tensors():
        checkpoint = read_weights(path, sample_rate, read_as)
        config = replace(checkpoint.config, frontend=replace(checkpoint.config.frontend, **given))
        if sample_rate not in (None, config.frontend.sample_rate):
            raise ConfigError(
                f"{name} is for {config.frontend.sample_rate} Hz, but sample_rate={sample_rate} was given; "
                "omit it, audio of any rate is resampled."
            )
        model = M2D.from_checkpoint(replace(checkpoint, config=config), path)
        if window_s is not None:
            model.set_window(window_s)
        if num_classes is not None and (model.head is None or model.head.config.num_classes != num_classes):
            model.set_head(num_classes)
            model.eval()
        model = model.to(device, torch.float32 if isinstance(dtype, str) else dtype)
        if dtype == "int8":
            quantize_encoder(model.encoder)
    if compile:
        compile_blocks(model.encoder.blocks, device)
    return model


def _usable_device(device: str | torch.device | None, dtype: torch.dtype | str) -> torch.device:
    """Return a device, by default the fastest, after computing on it: a build or driver may lack support."""
    if device is None and (dtype == "int8" or not torch.cuda.is_available()):
        device = "mps" if dtype != "int8" and torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device("cuda" if device is None else device)
        if dtype == "int8" and chosen.type != "cpu":
            raise ConfigError(f"dtype='int8' runs on the CPU only, but device={str(device)!r} was given.")
        (torch.ones(2, device=chosen) + 1).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: not in this build of torch
        raise ConfigError(
            f"device {str(device or 'cuda')!r} cannot be used ({reason_of(error)}). Omit device to use what "
            "is available, or give 'cpu'."
        ) from error
    return chosen
