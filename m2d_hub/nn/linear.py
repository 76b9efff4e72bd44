"""Linear layers with the faster of PyTorch's two matrix products on the CPU.

PyTorch multiplies float32 matrices on x86 processors with MKL. On AMD processors MKL reaches less than half
the speed of oneDNN, which PyTorch contains as well, so these layers call oneDNN there. On Intel processors
both are equally fast for large matrices and MKL is faster for small ones, so MKL stays.

The choice depends on the processor and the shapes alone, never on a timing, so that a resumed run computes
the same numbers. Weights are used as they are: no packed copy exists that could be out of date.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

# Multiplications below which the overhead of a oneDNN call outweighs its speed.
MIN_PRODUCTS = 1 << 20


class Linear(nn.Linear):
    """A linear layer with the parameters, names and results of ``nn.Linear``."""

    def reset_parameters(self) -> None:
        """Draw fresh weights, except on the meta device, where tensors have no values."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., in_features) to (..., out_features)."""
        return linear(features, self.weight, self.bias)


def linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``features @ weight.T + bias``, differentiable.

    Args:
        features: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
    """
    if not _takes_onednn(features, weight, bias):
        return F.linear(features, weight, bias)
    rows = features.reshape(-1, features.shape[-1])
    inputs = (rows, weight) if bias is None else (rows, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        product = _OneDNNLinear.apply(rows, weight, bias)
    else:
        product = _multiply(rows, weight, bias)
    return product.view(*features.shape[:-1], len(weight))


class _OneDNNLinear(torch.autograd.Function):
    """The product with gradients; each gradient is a product of the same kind, and differentiable itself."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.t()) if for_rows else None,
            linear(grad.t(), rows.t()) if for_weight else None,
            grad.sum(dim=0) if for_bias else None,
        )


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "none")


def _takes_onednn(features: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN computes this product: ordinary float32 CPU tensors outside of any tracing."""
    if not onednn_is_faster() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    tensors = (features, weight) if bias is None else (features, weight, bias)
    return (
        all(_is_plain(tensor) for tensor in tensors)
        and weight.ndim == 2
        and features.shape[-1:] == weight.shape[1:]
        and features.numel() * len(weight) >= MIN_PRODUCTS
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
    )


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Return whether the processor is one where oneDNN multiplies faster than MKL: AMD with AVX2 or later."""
    return (
        "AuthenticAMD" in _processor()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a private operator, which may be renamed
    )


def _processor() -> str:
    """Return the name of the processor's maker, as far as the system reports it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()
