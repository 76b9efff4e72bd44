"""Linear layers for every round of a labelled list, and what they say of its test clips.

Shapes: N clips, L layers, K features, C classes, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .labelled import LabelledList, Part, Round
from .linear_fit import LinearFit, Standardiser, fit_linear
from .linear_layers import Examples, FitSettings
from .report import Evaluation, ScoredRound


@dataclass(frozen=True)
class RoundFit:
    """One round's layers and their scores."""

    round: Round
    standardiser: Standardiser  # of the training clips
    fit: LinearFit
    scores: Tensor  # (S, N_test, C) probabilities


@dataclass(frozen=True)
class Outcome:
    """Result of one kind of features."""

    layer: str  # "last", a number from 1, or "mix"
    labelled: LabelledList
    settings: FitSettings
    seeds: Sequence[int]
    rounds: Sequence[RoundFit]

    @cached_property
    def evaluation(self) -> Evaluation:
        """The test clips' scores and figures."""
        scored = [ScoredRound(fitted.round.name, fitted.round.test, fitted.scores) for fitted in self.rounds]
        return Evaluation(self.labelled, self.settings.metric, self.seeds, scored)

    @property
    def valid_score(self) -> float:
        """Mean of the metric on the valid clips over rounds and seeds."""
        return float(torch.stack([fitted.fit.score for fitted in self.rounds]).mean())

    @property
    def valid_loss(self) -> float:
        """Mean of the loss on the valid clips over rounds and seeds."""
        return float(torch.stack([fitted.fit.loss for fitted in self.rounds]).mean())

    @property
    def has_converged(self) -> bool:
        """Whether every training stopped for want of a better epoch, none by the limit."""
        return all(bool(fitted.fit.has_converged.all()) for fitted in self.rounds)


def fit_rounds(
    layer: str,
    features: Tensor,
    labelled: LabelledList,
    seeds: Sequence[int],
    settings: FitSettings,
    on_epoch: Callable[[], object] = lambda: None,
) -> Outcome:
    """Trains and tests every round.

    Args:
        layer: What the features are, for the report.
        features: (N, L, K) in the order of the list's clips, on the device that trains; L > 1 to mix layers.
        labelled: The clips.
        seeds: A linear layer each.
        settings: How it is trained.
        on_epoch: Called after each epoch.
    """
    places = {clip.row: place for place, clip in enumerate(labelled.clips)}

    def examples(part: Part, standardise: Callable[[Tensor], Tensor]) -> Examples:
        part_features = features[[places[row] for row in part.rows]]
        return Examples(standardise(part_features), part.targets.to(features.device))

    fitted = []
    for data in labelled.rounds():
        standardiser = Standardiser.of(examples(data.train, lambda values: values).features)
        train, valid, test = (examples(part, standardiser) for part in (data.train, data.valid, data.test))
        fit = fit_linear(train, valid, seeds, settings, on_epoch)
        logits = fit.logits(test.features).float().cpu()
        scores = logits.sigmoid() if settings.is_multi_label else logits.softmax(dim=-1)
        fitted.append(RoundFit(data, standardiser, fit, scores))
    return Outcome(layer, labelled, settings, seeds, fitted)
