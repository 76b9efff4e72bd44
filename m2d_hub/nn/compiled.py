"""Transformer blocks through ``torch.compile``: the same weights under the same names, faster on GPUs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

import torch
from torch import nn

from m2d_hub.errors import ConfigError


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Compiles blocks in their places, each when it first runs; a copy of one is not compiled.

    Args:
        blocks: Of a transformer.
        device: That they are going to run on.

    Raises:
        ConfigError: They would run on a CPU, and there is no C++ compiler.
    """
    compilers = [os.environ.get("CXX", ""), "g++", "c++", "clang++", "cl"]
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
        raise ConfigError(
            "compile=True needs a C++ compiler on a CPU: install g++, or name one in the environment "
            "variable CXX; or leave compile out."
        )
    for block in blocks:
        block.compile()
