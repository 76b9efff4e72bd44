"""The devices and processes that a run has, and the precision that it computes in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def is_first_process() -> bool:
    """Whether this process is the one that talks, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def build_accelerator() -> Accelerator:
    """``accelerate.Accelerator`` for the devices and processes at hand."""
    import torch
    from accelerate import Accelerator

    on_cpu = not torch.accelerator.is_available()  # said aloud, or several processes do not find each other
    return Accelerator(cpu=on_cpu)


def resolve_precision(
    precision: Precision, device: torch.device, earlier: Precision | None = None
) -> Precision:
    """What ``auto`` is: as the run began, else bfloat16 on CUDA (float16 where it lacks that), else float32.

    Args:
        precision: As it was asked for.
        device: That the run computes on.
        earlier: Precision of the run that goes on; None: it begins.
    """
    import torch

    if precision != "auto":
        return precision
    if earlier is not None:
        return earlier
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The forward pass in half precision, where that is asked for; weights and losses stay in float32."""
    import torch

    dtypes: dict[str, Any] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes.get(precision, torch.bfloat16), enabled=precision in dtypes)
