"""The devices and processes that a run has, and the precision that it computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["fp32", "bf16"]


def build_accelerator() -> Accelerator:
    """``accelerate.Accelerator`` for the devices and processes at hand."""
    from accelerate import Accelerator

    on_cpu = not torch.accelerator.is_available()  # said aloud, or several processes do not find each other
    return Accelerator(cpu=on_cpu)
