"""Learning rates, EMA decay, and optimizer steps that are only taken where loss and gradients are finite."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from .devices import Precision

logger = logging.getLogger(__name__)

MIN_SCALE = 1.0  # of the loss: gradients that overflow even so do not because of float16


def learning_rate(
    epoch: float,
    *,
    peak_lr: float,
    min_lr: float,
    warmup_epochs: float,
    epochs: float,
    decay_epochs: float | None = None,
) -> float:
    """Linear warm-up, then half a cosine cycle (paper, section IV-A: as in masked autoencoders).

    With ``decay_epochs`` the rate stays at its peak until the last epochs, and only they are a cosine: what
    comes before them does not depend on the length of the training (arXiv:2405.18392).

    Args:
        epoch: Progress in epochs, fractional: it is evaluated for every optimizer step.
        peak_lr: Rate at the end of the warm-up: base rate · effective batch / 256.
        min_lr: Rate at the end of the training.
        warmup_epochs: Epochs of linear growth from zero.
        epochs: Epochs of the whole training.
        decay_epochs: Epochs of the cosine at the end; None, or too many: all after the warm-up.
    """
    if epoch < warmup_epochs:
        return peak_lr * epoch / warmup_epochs
    start = warmup_epochs if decay_epochs is None else max(warmup_epochs, epochs - decay_epochs)
    progress = min(1.0, max(0.0, epoch - start) / max(epochs - start, 1e-12))
    return min_lr + (peak_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(step: int, total_steps: int, start: float, end: float) -> float:
    """Decay rate τ of the target encoder, linear in the optimizer step (paper, section IV-A).

    Args:
        step: Optimizer step, from 0; the last one, ``total_steps`` − 1, gets ``end``.
        total_steps: Optimizer steps of the whole training.
        start: τ at step 0.
        end: τ at the last step.
    """
    return start + (end - start) * step / max(total_steps - 1, 1)


def warn_of_warmup(warmup_epochs: float, epochs: int) -> None:
    """Warn of a warm-up that is as long as the training, or longer."""
    if warmup_epochs >= epochs:
        logger.warning(
            "warmup_epochs is %g, but the training has %d epochs: the learning rate never reaches its peak. "
            "Set warmup_epochs too, for instance %g.",
            warmup_epochs,
            epochs,
            epochs / 10,
        )


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    losses: list[float]  # means over batches and processes; the first one is what was minimised
    grad_norm: float  # of all gradients together, before clipping
    is_taken: bool  # else loss or gradients were not finite, and nothing was changed
    is_overflow: bool  # gradients were too large for float16: their scale is lowered
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)  # further values for the log

    @property
    def loss(self) -> float:
        """What was minimised."""
        return self.losses[0]


class Stepper:
    """Takes optimizer steps; one whose loss or gradients are not finite changes nothing.

    In float16 the loss is scaled, so that small gradients do not vanish; a step whose gradients overflow
    lowers the scale instead.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        precision: Precision,
    ):
        """Hold what a step changes.

        Args:
            accelerator: Devices and processes.
            model: As prepared for the devices.
            optimizer: Of the model, without accelerate's wrapping.
            clip_norm: Maximum norm of all gradients together; infinity: no clipping.
            precision: Of the forward passes.
        """
        import torch

        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.clip_norm = clip_norm

    def step(self, batches: Sequence[Any], losses_of: Callable[[Any], Tensor]) -> Step:
        """Take one step over the mean loss of some batches.

        Args:
            batches: Of this process, one per forward pass.
            losses_of: Computes the losses (K,) of a batch, of which the first one is minimised.
        """
        import torch

        started = time.perf_counter()
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # running statistics
        rows = []
        for index, batch in enumerate(batches):
            is_last = index + 1 == len(batches)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = losses_of(batch)
                self.accelerator.backward(self.scaler.scale(losses[0] / len(batches)))
            rows.append(losses.detach())
        means = self.accelerator.reduce(torch.stack(rows).mean(dim=0), reduction="mean").tolist()
        norm, is_taken, is_overflow = self._update(means[0], buffers)
        return Step(means, norm, is_taken, is_overflow, time.perf_counter() - started)

    def _update(self, loss: float, buffers: list[Tensor]) -> tuple[float, bool, bool]:
        import torch

        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm))
        is_taken = math.isfinite(loss) and math.isfinite(norm)
        if is_taken:
            self.scaler.step(self.optimizer)
        else:
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm, is_taken, not is_taken and math.isfinite(loss) and scale > MIN_SCALE
