"""A linear layer that multiplies with weights packed once by oneDNN when it runs on a CPU without gradients.

On a CPU, ``torch.nn.functional.linear`` packs the weight matrix anew for every call, which costs as much as
the product itself for the few hundred rows of one window. The parameters stay plain: training, state dicts,
other devices and other precisions take the ordinary path.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKING_ROWS = 256  # the row count that oneDNN chooses the packed layout for; other counts work too


class Linear(nn.Linear):
    """``nn.Linear`` with packed weights for inference on a CPU."""

    _packed: Tensor | None = None
    _packed_from: tuple[int, int] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (..., in_features) to (..., out_features)."""
        if not self._can_use_packed(features):
            if self._packed is not None and torch.is_grad_enabled():
                self._packed = None  # a step may follow, and fused optimizers do not count versions
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
        version = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed_from != version:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), PACKING_ROWS)
            self._packed_from = version
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {key: value for key, value in state.items() if key not in ("_packed", "_packed_from")}
