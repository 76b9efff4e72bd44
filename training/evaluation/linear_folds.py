"""Linear layers for every fold of a labelled list, and their scores on the test clips.

Shapes: N clips, L layers, K features, C classes, S seeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from m2d_hub.model import M2D

from .clip_encoder import ClipEncoder, encode_files
from .labelled import Fold, LabelledList, Subset
from .linear_fit import Examples, FitSettings, LinearFit, Standardiser, fit_linear
from .report import Evaluation, ScoredFold

SEED = 42  # of evaluate_encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldFit:
    """The layers of one fold and their scores."""

    fold: Fold
    standardiser: Standardiser  # of the training clips
    fit: LinearFit
    scores: Tensor  # (S, N_test, C) probabilities


@dataclass(frozen=True)
class LinearResult:
    """Result of one kind of features."""

    layer: str  # "last", a number from 1, or "mix"
    labelled: LabelledList
    settings: FitSettings
    seeds: Sequence[int]
    folds: Sequence[FoldFit]

    @cached_property
    def evaluation(self) -> Evaluation:
        """Scores and metrics of the test clips."""
        scored = [ScoredFold(fitted.fold.name, fitted.fold.test, fitted.scores) for fitted in self.folds]
        return Evaluation(self.labelled, self.settings.metric, self.seeds, scored)

    @property
    def valid_score(self) -> float:
        """Mean of the metric on the valid clips over folds and seeds."""
        return float(torch.stack([fitted.fit.score for fitted in self.folds]).mean())

    @property
    def valid_loss(self) -> float:
        """Mean of the loss on the valid clips over folds and seeds."""
        return float(torch.stack([fitted.fit.loss for fitted in self.folds]).mean())

    @property
    def has_converged(self) -> bool:
        """Whether every training was stopped by its patience, none by max_epochs."""
        return all(bool(fitted.fit.has_converged.all()) for fitted in self.folds)


def fit_folds(
    layer: str,
    features: Tensor,
    labelled: LabelledList,
    seeds: Sequence[int],
    settings: FitSettings,
    on_epoch: Callable[[], object] = lambda: None,
) -> LinearResult:
    """Train and test every fold, with one linear layer per seed.

    Features (N, L, K) are in the order of the list's clips, on the training device; L > 1 mixes layers.
    """
    index_of = {clip.row: index for index, clip in enumerate(labelled.clips)}

    def examples(subset: Subset, standardise: Callable[[Tensor], Tensor]) -> Examples:
        subset_features = features[[index_of[row] for row in subset.rows]]
        return Examples(standardise(subset_features), subset.targets.to(features.device))

    fitted = []
    for fold in labelled.folds():
        standardiser = Standardiser.of(examples(fold.train, lambda values: values).features)
        train, valid, test = (
            examples(subset, standardiser) for subset in (fold.train, fold.valid, fold.test)
        )
        fit = fit_linear(train, valid, seeds, settings, on_epoch)
        logits = fit.logits(test.features).float().cpu()
        scores = logits.sigmoid() if settings.is_multi_label else logits.softmax(dim=-1)
        fitted.append(FoldFit(fold, standardiser, fit, scores))
    return LinearResult(layer, labelled, settings, seeds, fitted)


def evaluate_encoder(model: M2D, labelled: LabelledList) -> float:
    """Return the test score of a linear layer on frozen features, with one seed: a check during pre-training.

    The model is in eval mode; unreadable clips are skipped.
    """
    batches = list(encode_files(ClipEncoder(model), [clip.file for clip in labelled.clips], num_workers=2))
    errors = {index: reason for batch in batches for index, reason in batch.errors.items()}
    if errors:
        logger.warning("linear evaluation skips %d clips: %s", len(errors), next(iter(errors.values())))
        labelled = labelled.without({labelled.clips[index].row for index in errors})
    features = torch.cat([batch.features for batch in batches if batch.clips]).to(model.device)
    settings = FitSettings(labelled.is_multi_label)
    return float(fit_folds("last", features, labelled, [SEED], settings).evaluation.by_fold.mean())
