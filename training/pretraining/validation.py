"""What is measured between the steps, on clips and crops that are always the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..data.sampling import SampleKey
from ..data.skipped import NamedLeftOut
from ..runs.measuring import beside_training
from .analysis import TokenSums
from .dataset import Batch, PretrainDataset, stack_samples
from .loop import Trainer

GROUP_CLIPS = 16  # of one forward pass
FIXED_EPOCH = 1 << 30  # its random numbers are those of no training epoch
CHECKED_CLIPS = 1000  # whose tokens the label-free checks see


class FixedClips:
    """Clips of a list in groups of a fixed size: figures depend neither on batch_size nor on the processes.

    ``left_out`` are clips of this process that cannot be read, until somebody takes them.
    """

    def __init__(self, dataset: PretrainDataset, trainer: Trainer, most: int | None = None):
        """Takes ``most`` clips at equal distances, or all."""
        self.dataset, self.trainer, self.accelerator = dataset, trainer, trainer.accelerator
        self.count = min(len(dataset), most or len(dataset))
        self.left_out: list[NamedLeftOut] = []

    def groups(self) -> Iterator[tuple[Batch, int]]:
        """Groups of this process, each with how many clips count; all processes get as many groups."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        groups = math.ceil(self.count / GROUP_CLIPS)
        for group in range(rank, math.ceil(groups / processes) * processes, processes):
            first = group % groups * GROUP_CLIPS
            places = range(first, min(first + GROUP_CLIPS, self.count))
            batch = stack_samples([self.dataset[self._key(place)] for place in places])
            self.left_out += batch.left_out
            yield batch, len(places) if group < groups else 0

    def _key(self, place: int) -> SampleKey:
        return SampleKey(FIXED_EPOCH, place, place * len(self.dataset) // self.count)

    def sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Adds up what each process has; all call it together."""
        moved = values.to(self.accelerator.device) if self.accelerator.num_processes > 1 else values
        return self.accelerator.reduce(moved, reduction="sum").to(values.device)


def measure_loss(clips: FixedClips) -> dict[str, float]:
    """Mean loss over the clips; empty where it cannot be measured. All processes call it together."""
    total, counted_clips = math.nan, 0
    with beside_training("validation_loss"):
        total = 0.0
        for batch, counted in clips.groups():
            loss = clips.trainer.loss(batch)
            total += loss * counted if counted else 0.0
            counted_clips += counted
    summed, count = clips.sum_over_processes(torch.tensor([total, counted_clips])).tolist()
    return {"validation_loss": summed / count} if count and math.isfinite(summed) else {}


def check_tokens(clips: FixedClips, prefix: str = "") -> dict[str, float]:
    """RankMe and explained variance of all tokens of the unmasked clips. All processes call it together.

    Args:
        clips: Of the training list or another.
        prefix: Of the figures' names.
    """
    device = clips.accelerator.device
    sums = TokenSums.empty(clips.trainer.config.embed_dim, device)
    found: dict[str, float] = {}
    with beside_training(f"{prefix}rank_me"):
        for batch, counted in clips.groups():
            tokens = clips.trainer.tokens(batch)
            if counted:
                sums.add(tokens)
    sums = TokenSums(*(clips.sum_over_processes(value) for value in vars(sums).values()))
    with beside_training(f"{prefix}rank_me"):
        found = sums.checks(prefix)
    return found
