"""Steps of a pre-training: inputs on the device, forward, backward, optimizer, EMA.

Shapes: B batch, S samples, C channels, F mels, T frames, N_T time frames of tokens, K classes or features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

from ..data.manifest import Kind
from ..data.sampling import EpochPlan
from ..data.skipped import NamedSkip
from ..runs.loop import Step, Stepper, ema_decay, learning_rate
from ..runs.processes import autocast
from .config import PretrainConfig
from .dataset import Batch
from .pretrainer import LossTerms, Pretrainer
from .teachers import M2DTeacher, Teacher, TextTeacher

if TYPE_CHECKING:
    from accelerate import Accelerator

BETAS = (0.9, 0.95)  # of AdamW, as in masked autoencoders
REFERENCE_BATCH = 256  # clips that base_lr is given for


@dataclass(frozen=True)
class InputBuilder:
    """Inputs on the training device: standardised log-mel with noise, and targets of the offline network."""

    config: PretrainConfig
    kind: Kind
    frontend: LogMelFrontend
    noise_mean: float  # of the noise's log-mel values
    teacher: Teacher | TextTeacher | None = None

    @torch.no_grad()
    def log_mel(self, batch: Batch) -> Tensor:
        """Return standardised inputs (B, C, F, T), mixed with background noise if the batch has some."""
        if self.kind == "image":
            return batch.values
        clean = self._log_mel(batch.values)
        if batch.noise is None:
            return self.frontend.normalise(clean)[:, None]
        mean, std = self.frontend.config.mean, self.frontend.config.std
        noise = self._log_mel(batch.noise) - self.noise_mean
        return (mix_noise(clean - mean, noise, self.config.noise_ratio) / std)[:, None]

    @torch.no_grad()
    def offline_target(self, batch: Batch) -> Tensor | None:
        """Return labels (B, K), features of the clean clips (B, N_T, K), or features of captions (B, K)."""
        if self.config.offline is None:
            return None
        if batch.target is not None:
            return batch.target
        if isinstance(self.teacher, TextTeacher):
            return self.teacher.encode_captions(batch.captions)
        if self.kind == "audio" and self.teacher is not None:
            return self.teacher.encode(batch.values)
        if isinstance(self.teacher, M2DTeacher):
            return self.teacher.encode_log_mel(batch.values)
        raise ConfigError(
            f"the offline network learns from {self.config.offline.kind}, but the data have none, and no "
            f"teacher that takes {self.kind} files was given: add them to the data, or give a teacher."
        )

    def _log_mel(self, values: Tensor) -> Tensor:
        return self.frontend.log_mel_block(values) if self.kind == "audio" else values


def mix_noise(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Mix two log-mel spectrograms in the power domain (paper, equation 5).

    Args:
        clean: Log-mel spectrogram (..., F, T), centred by the mean of its data set.
        noise: Log-mel spectrogram of the same shape, centred by the mean of the noise's data set.
        ratio: Share η of the noise, from 0 to 1.

    Returns:
        log((1 − η)·exp(clean) + η·exp(noise)), of the same shape.
    """
    if ratio <= 0.0:
        return clean
    if ratio >= 1.0:
        return noise
    return torch.logaddexp(clean + math.log1p(-ratio), noise + math.log(ratio))


class Trainer:
    """Model, optimizer and inputs of one run."""

    def __init__(
        self,
        config: PretrainConfig,
        pretrainer: Pretrainer,
        inputs: InputBuilder,
        plan: EpochPlan,
        accelerator: Accelerator,
    ):
        """Prepare model and optimizer of the resolved run for the devices."""
        self.config, self.inputs, self.plan, self.accelerator = config, inputs, plan, accelerator
        self.model: nn.Module
        self.model, prepared = accelerator.prepare(pretrainer, build_optimizer(pretrainer, config))
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.stepper = Stepper(accelerator, self.model, self.optimizer, config.clip_norm, config.precision)
        self.total_steps = config.epochs * plan.steps_per_epoch
        self.skipped: list[NamedSkip] = []  # clips that could not be read, until they are reported

    @property
    def pretrainer(self) -> Pretrainer:
        """The model without the wrapping of DDP."""
        return self.accelerator.unwrap_model(self.model)

    def train_step(self, batches: list[Batch], step: int) -> Step:
        """Take one optimizer step, counted from 0, over ``accumulate_steps`` batches of this process."""
        lr = rate_of_step(self.config, step, self.plan.steps_per_epoch, self.plan.global_batch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        result = self.stepper.step(batches, self._losses)
        tau = ema_decay(step, self.total_steps, self.config.ema_start, self.config.ema_end)
        if result.is_taken:
            self.pretrainer.update_target_encoder(tau)
        self.skipped += [clip for batch in batches for clip in batch.left_out]
        _, m2d, *offline = result.losses
        return replace(
            result, metrics={"m2d": m2d, **({"offline": offline[0]} if offline else {}), "lr": lr, "tau": tau}
        )

    def forward(self, batch: Batch, model: nn.Module | None = None) -> LossTerms:
        """Compute the losses of one batch of this process."""
        batch = batch.to(self.accelerator.device)
        log_mel, offline_target = self.inputs.log_mel(batch), self.inputs.offline_target(batch)
        with autocast(log_mel.device, self.config.precision):
            return (model or self.model)(log_mel, batch.visible_ids, batch.masked_ids, offline_target)

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """Return the mean loss of a batch of this process alone, without training on it."""
        return float(self.forward(batch, self.pretrainer).total)

    @torch.no_grad()
    def tokens(self, batch: Batch) -> Tensor:
        """Return all tokens (B · N, D) of the online encoder, which sees every patch of the clips."""
        encoder = self.pretrainer.encoder
        log_mel = self.inputs.log_mel(batch.to(self.accelerator.device))
        with autocast(log_mel.device, self.config.precision):
            return encoder.encode(encoder.embed(log_mel))[:, 1:].flatten(0, 1)

    def _losses(self, batch: Batch) -> Tensor:
        terms = self.forward(batch)
        return torch.stack([term for term in (terms.total, terms.m2d, terms.offline) if term is not None])


def build_optimizer(module: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters; biases, norms and one-dimensional tensors do not decay."""
    trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    plain = {name for name, weight in trained if weight.ndim <= 1 or name.endswith(".bias")}
    groups = [
        {"params": [p for name, p in trained if name not in plain], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.base_lr, betas=BETAS, fused=True)


def rate_of_step(config: PretrainConfig, step: int, steps_per_epoch: int, global_batch: int) -> float:
    """Return the learning rate of a step, counted from 0: base rate · global batch / 256, on its schedule."""
    return learning_rate(
        step / steps_per_epoch,
        peak_lr=config.base_lr * global_batch / REFERENCE_BATCH,
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        epochs=config.epochs,
        decay_epochs=config.decay_epochs,
    )
