"""Optimizer steps, taken only where loss and gradients are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Update:
    """One optimizer step, or that it was left out."""

    grad_norm: float  # of all gradients together, before clipping
    is_taken: bool


class Updater:
    """Clips gradients and steps; a step whose loss or gradients are not finite changes nothing at all."""

    def __init__(
        self, accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float
    ):
        """Holds what a step changes.

        Args:
            accelerator: ``accelerate.Accelerator``.
            model: As prepared for the devices.
            optimizer: Of the model, without accelerate's wrapping.
            clip_norm: Largest norm of all gradients together; infinity: no clipping.
        """
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

    @torch.no_grad()
    def finish(self, loss: float) -> Update:
        """After the backward passes: steps, or takes the statistics back.

        Args:
            loss: Mean over batches and processes, the same in each process.
        """
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        update = Update(float(norm), math.isfinite(loss) and math.isfinite(float(norm)))
        if update.is_taken:
            self.optimizer.step()
        else:
            for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        self.optimizer.zero_grad()
        return update
