"""The devices and processes that a run has, and the precision that it computes in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["fp32", "bf16"]


def is_first_process() -> bool:
    """Whether this process is the one that talks, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def build_accelerator() -> Accelerator:
    """``accelerate.Accelerator`` for the devices and processes at hand."""
    import torch
    from accelerate import Accelerator

    on_cpu = not torch.accelerator.is_available()  # said aloud, or several processes do not find each other
    return Accelerator(cpu=on_cpu)
