"""The loss over a list of its own, whose crops and masks are always the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..data.left_out import NamedLeftOut
from ..data.sampling import SampleKey
from ..runs.measuring import beside_training
from .dataset import Batch, PretrainDataset, stack_samples
from .loop import Trainer

VALIDATION_CLIPS = 16  # of one forward pass
VALIDATION_EPOCH = 1 << 30  # its random numbers are those of no training epoch


class Validation:
    """Measures the loss; its figure depends neither on batch_size nor on the processes."""

    def __init__(self, dataset: PretrainDataset, trainer: Trainer):
        self.dataset, self.trainer, self.accelerator = dataset, trainer, trainer.accelerator
        self.left_out: list[NamedLeftOut] = []  # of this process, until somebody takes them

    def measure(self) -> dict[str, float]:
        """Mean loss over the clips; empty where it cannot be measured. All processes call it together."""
        sums = (math.nan, 0)
        with beside_training("validation_loss"):
            sums = self.trainer.sum_losses(self._groups())
        device = self.accelerator.device
        total, clips = self.accelerator.reduce(torch.tensor(sums, device=device), reduction="sum").tolist()
        return {"validation_loss": total / clips} if clips and math.isfinite(total) else {}

    def _groups(self) -> Iterator[tuple[Batch, int]]:
        """Groups of clips of this process, each with how many count; all processes get as many groups.

        Their size is fixed: a contrastive loss depends on it.
        """
        dataset = self.dataset
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        groups = math.ceil(len(dataset) / VALIDATION_CLIPS)
        for group in range(rank, math.ceil(groups / processes) * processes, processes):
            first = group % groups * VALIDATION_CLIPS
            places = range(first, min(first + VALIDATION_CLIPS, len(dataset)))
            batch = stack_samples([dataset[SampleKey(VALIDATION_EPOCH, place, place)] for place in places])
            self.left_out += batch.left_out
            yield batch, len(places) if group < groups else 0
