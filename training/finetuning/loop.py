"""Steps of one fine-tuning, and what the model says of whole clips.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.labelled import Subset
from ..runs.devices import autocast
from ..runs.updates import Updater
from .config import FinetuneConfig
from .learner import Learner
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
        learner: Learner,
        objective: TaskObjective,
        steps_per_epoch: int,
        accelerator: Accelerator,
    ):
        """Wraps model and optimizer.

        Args:
            config: The run, scaled to the data.
            learner: The model, on any device.
            objective: The loss.
            steps_per_epoch: Optimizer steps.
            accelerator: ``accelerate.Accelerator``, which holds devices and processes.
        """
        self.config, self.objective, self.accelerator = config, objective, accelerator
        self.learner = learner
        self.steps_per_epoch = steps_per_epoch
        optimizer = build_finetune_optimizer(learner.parameter_groups(), config)
        self.model: nn.Module
        self.model, prepared = accelerator.prepare(learner.network, optimizer)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.updater = Updater(
            accelerator, self.model, self.optimizer, config.clip_norm or math.inf, config.precision
        )

    def train_step(self, batches: list[Any], step: int) -> FinetuneStep:
        """One optimizer step over ``accumulate_steps`` batches.

        Args:
            batches: Of this process.
            step: From 0.
        """
        started = time.perf_counter()
        self.model.train()
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

    def _loss(self, batch: Any) -> Tensor:
        inputs, targets = self.learner.inputs(batch.to(self.accelerator.device))
        with autocast(self.accelerator.device, self.config.precision):
            logits = self.model(*inputs)
        return self.objective(logits.float(), targets)

    @torch.no_grad()
    def logits(self, part: Subset) -> Tensor:
        """Logits (N, C) of whole clips, each process its share."""
        accelerator = self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        self._share_buffers()
        self.learner.model.eval()
        own = list(self.learner.logits(part.files[rank::processes]))
        if processes == 1:
            return torch.cat(own)
        from accelerate.utils import gather_object

        answer = torch.empty(len(part), part.num_classes)
        shares = gather_object([torch.cat(own) if own else answer[:0]])
        for place, share in enumerate(shares):
            answer[place::processes] = share
        return answer

    def _share_buffers(self) -> None:
        """Gives every process the first one's running statistics of the head."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for buffer in self.learner.model.buffers():
                buffer.copy_(broadcast(buffer, from_process=0))
