"""The order of clips in each epoch, as a pure function of seed, epoch and list.

Every random choice of a run depends on (seed, epoch, position) alone, not on the step at which a run was
resumed, nor on the number of workers or processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SampleKey:
    """One draw of a clip."""

    epoch: int
    position: int  # in the epoch's order
    index: int  # in the list
    first: int = 0  # position of the first clip of its batch
    count: int = 1  # clips of its batch


@dataclass(frozen=True)
class EpochPlan:
    """Number of clips and steps of an epoch, and the order of the clips."""

    list_size: int
    global_batch: int  # clips of one optimizer step, all processes and accumulation together
    seed: int
    parts: int | None = None  # batches of a step, to keep a last step of two or more clips per batch
    min_list_size: int = 0  # shorter lists are repeated up to this size
    weights: np.ndarray | None = None  # (list_size,), for weighted draws
    samples_per_epoch: int | None = None  # of weighted draws

    @property
    def epoch_size(self) -> int:
        """Clips of one epoch; at least one global batch."""
        size = self.list_size
        if self.weights is not None and self.samples_per_epoch is not None:
            size = min(size, self.samples_per_epoch)
        return max(size, self.min_list_size, self.global_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; a last, smaller step is dropped unless ``parts`` is set."""
        steps, rest = divmod(self.epoch_size, self.global_batch)
        return steps + int(self.parts is not None and rest >= 2 * self.parts)

    def order(self, epoch: int) -> np.ndarray:
        """Return indices of the list in the order of this epoch (epoch_size,).

        Weighted draws repeat no clip where an epoch has at most half of the list.
        """
        rng = np.random.default_rng([self.seed, epoch])
        if self.weights is not None and 2 * self.epoch_size > self.list_size:
            # Without replacement, a draw of most of the list would contain most clips whatever their weights.
            return rng.choice(self.list_size, self.epoch_size, p=self.weights / self.weights.sum())
        if self.weights is not None:
            # Keys of Efraimidis and Spirakis: the largest are a weighted draw without replacement.
            keys = np.log(rng.random(self.list_size)) / self.weights
            return np.argsort(-keys)[: self.epoch_size]
        if self.epoch_size <= self.list_size:
            return rng.permutation(self.list_size)[: self.epoch_size]
        return rng.permutation(np.resize(np.arange(self.list_size), self.epoch_size))


@dataclass(frozen=True)
class StepSampler:
    """Batch sampler of one process for a map-style data set, starting at any step."""

    plan: EpochPlan
    accumulate_steps: int
    first_step: int
    total_steps: int
    rank: int = 0
    num_processes: int = 1

    def __len__(self) -> int:
        return (self.total_steps - self.first_step) * self.accumulate_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.first_step, self.total_steps):
            epoch, step_in_epoch = divmod(step, self.plan.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.plan.order(epoch), epoch
            start = step_in_epoch * self.plan.global_batch
            positions = np.arange(start, min(start + self.plan.global_batch, self.plan.epoch_size))
            batches = np.array_split(positions, self.accumulate_steps * self.num_processes)
            for batch in batches[self.rank :: self.num_processes]:
                yield [
                    SampleKey(epoch, int(position), int(order[position]), int(batch[0]), len(batch))
                    for position in batch
                ]


def balancing_weights(labels: Sequence[tuple[Hashable, ...]], exponent: float = 1.0) -> np.ndarray:
    """Return the class-balancing weight of each clip: the sum of its labels' inverse counts, to a power.

    Args:
        labels: Labels of each clip; a clip without labels has the weight of the most frequent class.
        exponent: 1 draws all classes equally often, 0 all clips; the paper's AudioSet runs use 1/1.5.
    """
    counts = Counter(label for clip in labels for label in clip)
    min_weight = 1.0 / max(counts.values(), default=1)
    sums = np.array([sum(1.0 / counts[label] for label in clip) or min_weight for clip in labels])
    return sums**exponent
