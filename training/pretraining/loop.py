"""The training loop: forward, backward, optimizer, EMA."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data.sampling import EpochPlan
from ..data.skipped import NamedLeftOut
from ..runs.devices import autocast
from ..runs.schedules import ema_decay
from ..runs.updates import Updater
from .config import PretrainConfig
from .dataset import Batch
from .inputs import InputBuilder
from .optimizer import rate_of_step
from .pretrainer import LossTerms, Pretrainer

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class StepResult:
    """Result of one optimizer step."""

    loss: float
    m2d: float
    offline: float | None
    lr: float
    tau: float
    grad_norm: float
    is_taken: bool  # else loss or gradients were not finite, and nothing was changed
    is_overflow: bool  # of float16, whose scale is lowered
    seconds: float
    left_out: list[NamedLeftOut]  # clips that could not be read

    def metrics(self) -> dict[str, float]:
        """Values for the record."""
        names = ("loss", "m2d", "offline", "lr", "tau", "grad_norm", "seconds")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Trainer:
    """Steps of one run; what it holds is all that a step touches."""

    def __init__(
        self,
        config: PretrainConfig,
        pretrainer: Pretrainer,
        optimizer: torch.optim.Optimizer,
        inputs: InputBuilder,
        plan: EpochPlan,
        accelerator: Accelerator,
    ):
        """Wraps model and optimizer for the devices at hand.

        Args:
            config: The resolved run.
            pretrainer: The model, on any device.
            optimizer: Over the model's parameters.
            inputs: Makes spectrograms and training signals of batches.
            plan: Epochs.
            accelerator: ``accelerate.Accelerator``, which holds devices and processes.
        """
        self.config, self.inputs, self.plan, self.accelerator = config, inputs, plan, accelerator
        self.model: nn.Module
        self.model, self._prepared = accelerator.prepare(pretrainer, optimizer)
        self.optimizer: torch.optim.Optimizer = self._prepared.optimizer
        self.updater = Updater(accelerator, self.model, self.optimizer, config.clip_norm, config.precision)
        self.total_steps = config.epochs * plan.steps_per_epoch

    @property
    def pretrainer(self) -> Pretrainer:
        """The model without the wrapping of DDP."""
        return self.accelerator.unwrap_model(self.model)

    def train_step(self, batches: list[Batch], step: int) -> StepResult:
        """One optimizer step over ``accumulate_steps`` batches.

        Args:
            batches: Of this process.
            step: From 0.
        """
        started = time.perf_counter()
        lr, tau = self._schedule(step)
        self.updater.begin()
        terms = []
        for index, batch in enumerate(batches):
            with self._gradients_kept_local(index + 1 < len(batches)):
                terms.append(self.forward(batch))
                self.updater.backward(terms[-1].total / len(batches))
        loss, m2d, offline = self._mean_terms(terms)
        update = self.updater.finish(loss)
        if update.is_taken:
            self.pretrainer.update_target_encoder(tau)
        return StepResult(
            loss=loss,
            m2d=m2d,
            offline=offline if terms[0].offline is not None else None,
            lr=lr,
            tau=tau,
            grad_norm=update.grad_norm,
            is_taken=update.is_taken,
            is_overflow=update.is_overflow,
            seconds=time.perf_counter() - started,
            left_out=[clip for batch in batches for clip in batch.left_out],
        )

    def forward(self, batch: Batch) -> LossTerms:
        """Losses of one batch of this process."""
        return self._losses(self.model, batch)

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """Mean loss of a batch of this process alone, which is not trained on."""
        return float(self._losses(self.pretrainer, batch).total)

    @torch.no_grad()
    def tokens(self, batch: Batch) -> Tensor:
        """All tokens (B · N, D) of the online encoder, which sees every patch of the clips."""
        encoder = self.pretrainer.encoder
        log_mel = self.inputs.log_mel(batch.to(self.accelerator.device))
        with autocast(log_mel.device, self.config.precision):
            return encoder.encode(encoder.embed(log_mel))[:, 1:].flatten(0, 1)

    def _losses(self, model: nn.Module, batch: Batch) -> LossTerms:
        batch = batch.to(self.accelerator.device)
        log_mel, offline_target = self.inputs.log_mel(batch), self.inputs.offline_target(batch)
        with autocast(log_mel.device, self.config.precision):
            return model(log_mel, batch.visible_ids, batch.masked_ids, offline_target)

    def _schedule(self, step: int) -> tuple[float, float]:
        lr = rate_of_step(self.config, step, self.plan.steps_per_epoch, self.plan.global_batch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr, ema_decay(step, self.total_steps, self.config.ema_start, self.config.ema_end)

    def _mean_terms(self, terms: list[LossTerms]) -> list[float]:
        """Total, M2D and offline loss, averaged over the step's batches and processes."""
        rows = [torch.stack([t.total, t.m2d, t.total * 0 if t.offline is None else t.offline]) for t in terms]
        return self.accelerator.reduce(torch.stack(rows).detach().mean(dim=0), reduction="mean").tolist()

    def _gradients_kept_local(self, local: bool) -> contextlib.AbstractContextManager:
        return self.accelerator.no_sync(self.model) if local else contextlib.nullcontext()
