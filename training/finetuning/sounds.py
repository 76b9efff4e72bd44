"""A model of sounds that is fine-tuned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from m2d_hub.model import M2D

from ..data.annotations import AudioFile
from ..data.sampling import StepSampler
from ..evaluation.labelled import Fold, Subset
from ..runs.devices import autocast
from .config import FinetuneConfig
from .data import FinetuneBatch, FinetuneDataset, augmented, build_train_loader, clips_to_score
from .head import fit_head, head_features
from .model import FinetuneModel
from .optimizer import parameter_groups


class SoundLearner:
    """See Learner."""

    def __init__(self, model: M2D, config: FinetuneConfig):
        self.model, self.config = model, config
        self.network = FinetuneModel(model, config.head_norm)
        self.blocks = model.encoder.blocks

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See Learner."""
        return parameter_groups(self.model, self.config)

    def batches(self, part: Subset, sampler: StepSampler, seed: int) -> Iterable[FinetuneBatch]:
        """See Learner."""
        frontend, encoder = self.model.config.frontend, self.model.config.encoder
        dataset = FinetuneDataset(part, self.config, frontend, encoder, seed)
        return build_train_loader(dataset, sampler, self.config.num_workers)

    def inputs(self, batch: FinetuneBatch) -> tuple[tuple[Any, ...], Tensor]:
        """See Learner."""
        log_mel, targets = augmented(batch, self.model.frontend, self.config)
        return (log_mel, batch.num_frames, batch.kept), targets

    def logits(self, files: Sequence[AudioFile]) -> Iterator[Tensor]:
        """See Learner: all frames count, as in inference."""
        head = self.model.required_head()
        for clips in clips_to_score(files, self.model, self.config):
            with autocast(self.model.device, self.config.precision):
                features = head_features(self.model, clips, self.config.batch_size)
            yield head(features.to(head.linear.weight)).float().cpu()

    def probabilities(self, logits: Tensor) -> Tensor:
        """See Learner."""
        return self.model.required_head().scores(logits)

    def fit_head(self, data: Fold, seed: int) -> None:
        """See Learner."""
        fit_head(self.model, data, self.config, seed)

    def save(self, folder: Path) -> None:
        """See Learner: for ``m2d_hub.load_model``."""
        self.model.save_pretrained(folder)
