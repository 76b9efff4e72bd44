"""What can be fine-tuned: a model of sounds or of pictures, and what hangs on which of them it is.

Shapes: B batch, N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..data.annotations import AudioFile
from ..data.sampling import StepSampler
from ..evaluation.labelled import Fold, Subset


class Learner(Protocol):
    """A model with its batches, inputs and scores."""

    @property
    def model(self) -> nn.Module:
        """Whose weights are trained and saved."""
        ...

    @property
    def network(self) -> nn.Module:
        """What a step runs: the model, or something around it."""
        ...

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Of the model's transformer."""
        ...

    @property
    def fit_head(self) -> Callable[[Fold, int], None] | None:
        """Gives the model the layer of linear evaluation, by a seed; None: it has no such thing."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in groups with an ``lr_scale``."""
        ...

    def batches(self, part: Subset, sampler: StepSampler, seed: int) -> Iterable[Any]:
        """Training batches of ``sampler``; each has a method ``to(device)``."""
        ...

    def inputs(self, batch: Any) -> tuple[tuple[Any, ...], Tensor]:
        """What ``network`` takes of a batch on its device, augmented, and the targets (B, C)."""
        ...

    def logits(self, files: Sequence[AudioFile]) -> Iterable[Tensor]:
        """What the model, in eval mode, says of clips, some at a time (n, C), on the CPU."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits (N, C)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the model for use."""
        ...
