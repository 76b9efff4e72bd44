"""Steps of one fine-tuning, and what the model says of whole clips.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.model import M2D

from ..evaluation.labelled import Part
from ..runs.devices import autocast
from ..runs.updates import Updater
from .config import FinetuneConfig
from .data import FinetuneBatch, augmented, clips_to_score
from .head import head_features
from .model import FinetuneModel
from .optimizer import build_finetune_optimizer, set_rate

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TaskObjective:
    """The loss of a task."""

    is_multi_label: bool
    class_weights: Tensor | None = None  # (C,)
    over_classes: bool = False  # cross-entropy is divided by C too

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch of cross-entropy, or of binary cross-entropies; targets (N, C) may be mixed."""
        if self.is_multi_label:
            return F.binary_cross_entropy_with_logits(logits, targets)
        if self.class_weights is not None:
            targets = targets * self.class_weights.to(targets)
        total = -(targets * logits.log_softmax(dim=-1)).sum()
        return total / targets.sum() / (logits.shape[-1] if self.over_classes else 1)


def inverse_class_weights(targets: Tensor) -> Tensor:
    """Weight of each class (C,), inverse to its clips; over the clips (N, C) their mean is 1."""
    counts = targets.sum(dim=0)
    return counts.sum() / (len(counts) * counts.clamp(min=1.0))


@dataclass(frozen=True)
class FinetuneStep:
    """Result of one optimizer step."""

    loss: float
    lr: float
    grad_norm: float
    is_taken: bool  # else loss or gradients were not finite, and nothing was changed
    is_overflow: bool  # of float16, whose scale is lowered
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Values for the record."""
        return {name: value for name, value in vars(self).items() if not name.startswith("is_")}


class FinetuneTrainer:
    """Model, optimizer and loss of one fine-tuning on the devices at hand."""

    def __init__(
        self,
        config: FinetuneConfig,
        backbone: M2D,
        objective: TaskObjective,
        steps_per_epoch: int,
        accelerator: Accelerator,
    ):
        """Wraps model and optimizer.

        Args:
            config: The run, scaled to the data.
            backbone: The model with its head, on any device.
            objective: The loss.
            steps_per_epoch: Optimizer steps.
            accelerator: ``accelerate.Accelerator``, which holds devices and processes.
        """
        self.config, self.objective, self.accelerator = config, objective, accelerator
        self.steps_per_epoch = steps_per_epoch
        optimizer = build_finetune_optimizer(backbone, config)
        self.model: nn.Module
        self.model, prepared = accelerator.prepare(FinetuneModel(backbone), optimizer)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.updater = Updater(
            accelerator, self.model, self.optimizer, config.clip_norm or math.inf, config.precision
        )

    @property
    def backbone(self) -> M2D:
        """The model without any wrapping."""
        return self.accelerator.unwrap_model(self.model).backbone

    def train_step(self, batches: list[FinetuneBatch], step: int) -> FinetuneStep:
        """One optimizer step over ``accumulate_steps`` batches.

        Args:
            batches: Of this process.
            step: From 0.
        """
        started = time.perf_counter()
        self.model.train()
        if not self.config.head_norm:
            self.backbone.required_head().norm.eval()
        lr = set_rate(self.optimizer, self.config, step, self.steps_per_epoch)
        self.updater.begin()
        losses = []
        for index, batch in enumerate(batches):
            is_last = index + 1 == len(batches)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self._loss(batch)
                self.updater.backward(loss / len(batches))
                losses.append(loss.detach())
        mean = float(self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
        update = self.updater.finish(mean)
        seconds = time.perf_counter() - started
        return FinetuneStep(mean, lr, update.grad_norm, update.is_taken, update.is_overflow, seconds)

    def _loss(self, batch: FinetuneBatch) -> Tensor:
        batch = batch.to(self.accelerator.device)
        log_mel, targets = augmented(batch, self.backbone.frontend, self.config)
        with autocast(self.accelerator.device, self.config.precision):
            logits = self.model(log_mel, batch.num_frames, batch.kept)
        return self.objective(logits.float(), targets)

    @torch.no_grad()
    def logits(self, part: Part) -> Tensor:
        """Logits (N, C) of whole clips, each process its share: all frames count, as in inference."""
        backbone, accelerator = self.backbone, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        self._share_buffers()
        backbone.eval()
        own = [
            self._classify(clips)
            for clips in clips_to_score(part.files[rank::processes], backbone, self.config)
        ]
        if processes == 1:
            return torch.cat(own)
        from accelerate.utils import gather_object

        answer = torch.empty_like(part.targets)
        shares = gather_object([torch.cat(own) if own else answer[:0]])
        for place, share in enumerate(shares):
            answer[place::processes] = share
        return answer

    def _classify(self, clips: list[Tensor]) -> Tensor:
        head = self.backbone.required_head()
        with autocast(self.accelerator.device, self.config.precision):
            features = head_features(self.backbone, clips, self.config.batch_size)
        return head(features.to(head.linear.weight)).float().cpu()

    def _share_buffers(self) -> None:
        """Gives every process the first one's running statistics of the head."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for buffer in self.backbone.buffers():
                buffer.copy_(broadcast(buffer, from_process=0))
