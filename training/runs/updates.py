"""Optimizer steps, taken only where loss and gradients are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .devices import Precision

LEAST_SCALE = 1.0  # of the loss: gradients that overflow even so are none of float16's doing


@dataclass(frozen=True)
class Update:
    """One optimizer step, or that it was left out."""

    grad_norm: float  # of all gradients together, before clipping
    is_taken: bool
    is_overflow: bool = False  # gradients were too large for float16: their scale is lowered


class Updater:
    """Clips gradients and steps; a step whose loss or gradients are not finite changes nothing at all.

    In float16 the loss is scaled, that small gradients do not vanish; a step whose gradients overflow lowers
    the scale instead.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        precision: Precision,
    ):
        """Holds what a step changes.

        Args:
            accelerator: ``accelerate.Accelerator``.
            model: As prepared for the devices.
            optimizer: Of the model, without accelerate's wrapping.
            clip_norm: Largest norm of all gradients together; infinity: no clipping.
            precision: Of the forward passes.
        """
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
        self.accelerator, self.model, self.optimizer, self.clip_norm = (
            accelerator,
            model,
            optimizer,
            clip_norm,
        )
        self._buffers: list[torch.Tensor] = []

    def begin(self) -> None:
        """Before the forward passes: remembers running statistics, which these change."""
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        self.accelerator.backward(self.scaler.scale(loss))

    @torch.no_grad()
    def finish(self, loss: float) -> Update:
        """After the backward passes: steps, or takes the statistics back.

        Args:
            loss: Mean over batches and processes, the same in each process.
        """
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm))
        is_taken = math.isfinite(loss) and math.isfinite(norm)
        if is_taken:
            self.scaler.step(self.optimizer)
        else:
            for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad()
        is_overflow = not is_taken and math.isfinite(loss) and scale > LEAST_SCALE
        return Update(norm, is_taken, is_overflow)
