"""Optimizer steps of one fine-tuning, and the model's logits of whole clips.

Shapes: N clips, C classes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.errors import AudioError

from ..data.skipped import SkippedClip
from ..evaluation.labelled import Subset
from ..runs.loop import Step, Stepper, learning_rate
from ..runs.processes import autocast
from .config import FinetuneConfig
from .images import ImageClassifier
from .model import AudioClassifier

if TYPE_CHECKING:
    from accelerate import Accelerator

MOMENTUM = 0.9  # of SGD and LARS
BETA1 = 0.9  # of Adam and AdamW


@dataclass(frozen=True)
class TaskObjective:
    """The loss of a task."""

    is_multi_label: bool
    class_weights: Tensor | None = None  # (C,)
    over_classes: bool = False  # divide the cross-entropy by C

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean (binary) cross-entropy of a batch; targets (N, C) may be mixed."""
        if self.is_multi_label:
            return F.binary_cross_entropy_with_logits(logits, targets)
        if self.class_weights is not None:
            targets = targets * self.class_weights.to(targets)
        total = -(targets * logits.log_softmax(dim=-1)).sum()
        return total / targets.sum() / (logits.shape[-1] if self.over_classes else 1)


def inverse_class_weights(targets: Tensor) -> Tensor:
    """Return weights of the classes (C,), inverse to their clips; their mean over the clips (N, C) is 1."""
    counts = targets.sum(dim=0)
    return counts.sum() / (len(counts) * counts.clamp(min=1.0))


class FinetuneTrainer:
    """Model, optimizer and loss of one fine-tuning on the available devices."""

    def __init__(
        self,
        config: FinetuneConfig,
        classifier: AudioClassifier | ImageClassifier,
        objective: TaskObjective,
        steps_per_epoch: int,
        accelerator: Accelerator,
    ):
        """Prepare model and optimizer."""
        self.config, self.objective, self.accelerator = config, objective, accelerator
        self.classifier, self.steps_per_epoch = classifier, steps_per_epoch
        optimizer = build_optimizer(parameter_groups(classifier.backbone, config), config)
        self.model: nn.Module
        self.model, prepared = accelerator.prepare(classifier, optimizer)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.stepper = Stepper(
            accelerator, self.model, self.optimizer, config.clip_norm or math.inf, config.precision
        )
        self.skipped: list[SkippedClip] = []  # clips that could not be read, until they are reported

    def train_step(self, batches: list[Any], step: int) -> Step:
        """Take one optimizer step over ``accumulate_steps`` batches."""
        self.model.train()
        lr = set_rate(self.optimizer, self.config, step, self.steps_per_epoch)
        self.skipped += [clip for batch in batches for clip in batch.skipped]
        return replace(self.stepper.step(batches, self._loss), metrics={"lr": lr})

    def _loss(self, batch: Any) -> Tensor:
        inputs, targets = self.classifier.inputs(batch.to(self.accelerator.device))
        with autocast(self.accelerator.device, self.config.precision):
            logits = self.model(*inputs)
        return self.objective(logits.float(), targets)[None]

    @torch.no_grad()
    def logits(self, subset: Subset) -> Tensor:
        """Return the logits (N, C) of whole clips; each process computes its share.

        Raises:
            AudioError: A clip cannot be read by one of the processes.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self._share_buffers()
        self.classifier.eval()
        found: Tensor | AudioError
        try:
            parts = list(self.classifier.logits(subset.files[rank::processes]))
            found = torch.cat(parts) if parts else torch.empty(0, subset.num_classes)
        except AudioError as error:
            found = error
        shares = [found]
        if processes > 1:
            from accelerate.utils import gather_object

            shares = gather_object(shares)
        answer = torch.empty(len(subset), subset.num_classes)
        for index, share in enumerate(shares):
            if isinstance(share, AudioError):
                raise share
            answer[index::processes] = share
        return answer

    def _share_buffers(self) -> None:
        """Copy the head's running statistics of the first process to all others."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for buffer in self.classifier.buffers():
                buffer.copy_(broadcast(buffer, from_process=0))


def parameter_groups(backbone: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Group the trained parameters by ``lr_scale`` and weight decay, as timm's ``param_groups_layer_decay``.

    With ``layer_decay`` d, the head and the final norm have the scale 1, the last block d, the one before it
    d², and so on down to the patch embedding (BEiT, masked autoencoders). Biases, norms, embeddings and
    one-dimensional tensors do not decay unless ``decay_all`` is set.
    """
    names = [name for name, _ in backbone.named_parameters()]
    depth = max(_layer_of(name, 0) for name in names)
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and not name.endswith((".bias", "cls_token", "pos_embed"))
            members[_layer_of(name, depth + 1), config.decay_all or is_weight].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": config.layer_decay ** (depth + 1 - layer),
        }
        for (layer, decays), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def _layer_of(name: str, after: int) -> int:
    """Return 0 for parameters before the blocks, 1 … depth for those of a block, ``after`` for the others."""
    name = name.removeprefix("encoder.")
    if match := re.match(r"blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if name.startswith(("patch_embed.", "cls_token", "pos_embed")) else after


def build_optimizer(groups: list[dict[str, Any]], config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a fine-tuning.

    ``lars`` is timm's, which adapts only tensors that decay: without weight decay, as for the paper's
    AudioSet, it equals SGD.
    """
    if config.optimizer == "lars":
        from timm.optim import Lars

        return Lars(groups, lr=config.lr, momentum=MOMENTUM)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=(BETA1, config.beta2), amsgrad=config.amsgrad, fused=True)


def finetune_rate(epoch: float, config: FinetuneConfig) -> float:
    """Return the head's rate: linear warm-up, then a cosine that starts at the first step or after it."""
    if config.cosine_after_warmup:
        return learning_rate(
            epoch,
            peak_lr=config.lr,
            min_lr=config.min_lr,
            warmup_epochs=config.warmup_epochs,
            epochs=config.epochs,
        )
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = epoch / (config.cosine_epochs or config.epochs)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_rate(
    optimizer: torch.optim.Optimizer, config: FinetuneConfig, step: int, steps_per_epoch: int
) -> float:
    """Set the rate of one optimizer step and return the head's."""
    lr = finetune_rate(step / steps_per_epoch, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr
