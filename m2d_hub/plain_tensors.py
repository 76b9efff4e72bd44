"""Where weights and constants are made: untouched by the caller's modes and defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Tensors made inside are ordinary float32 ones on the CPU, which can be trained and versioned.

    They would not be inside ``torch.inference_mode()``, ``torch.device("meta")`` or another default type.
    """
    dtype = torch.get_default_dtype()
    if dtype is not torch.float32:  # of the whole process: left alone where it need not change
        torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(mode=False), torch.device("cpu"):
            yield
    finally:
        if dtype is not torch.float32:
            torch.set_default_dtype(dtype)
