"""A linear layer that multiplies with weights packed once by oneDNN when it runs on a CPU without gradients.

On a CPU, ``torch.nn.functional.linear`` packs the weight matrix anew for every call, which costs as much as
the product itself for the few hundred rows of one window. The parameters stay plain: training, state dicts,
other devices and other precisions take the ordinary path.

Nothing in torch tells that a weight was written: version counters miss ``.data``, NumPy views, fused
optimizers and ``torch._foreach_*``, as moving averages of weights use them. So each call compares the
weight's products with a fixed vector to those of the packed copy, which reads the weight once.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKING_ROWS = 256  # the row count that oneDNN chooses the packed layout for; other counts work too


class Linear(nn.Linear):
    """``nn.Linear`` with packed weights for inference on a CPU."""

    _packed: Tensor | None = None
    _packed_products: Tensor | None = None  # (out_features,) of the weight that was packed

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (..., in_features) to (..., out_features)."""
        if not self._can_use_packed(features):
            return F.linear(features, self.weight, self.bias)
        rows = features.reshape(-1, self.in_features)
        projected = torch.ops.mkldnn._linear_pointwise(rows, self._pack(), self.bias, "none", [], "none")
        return projected.view(*features.shape[:-1], self.out_features)

    def _can_use_packed(self, features: Tensor) -> bool:
        return (
            features.device.type == "cpu"
            and features.dtype is self.weight.dtype is torch.float32
            and not torch.is_grad_enabled()
            and torch.backends.mkldnn.is_available()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
        )

    def _pack(self) -> Tensor:
        weight = self.weight.detach()
        products = torch.mv(weight, _probe(self.in_features))
        known = self._packed_products
        if self._packed is None or known is None or not products.equal(known):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKING_ROWS)
            self._packed_products = products
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {key: value for key, value in state.items() if key not in ("_packed", "_packed_products")}


@functools.cache
def _probe(size: int) -> Tensor:
    """A fixed vector (size,) without zeros, of both signs."""
    generator = torch.Generator().manual_seed(size)
    with torch.inference_mode(mode=False):
        signs = torch.randint(0, 2, (size,), generator=generator, device="cpu") * 2 - 1
        return signs * (0.5 + torch.rand(size, generator=generator, device="cpu", dtype=torch.float32))
