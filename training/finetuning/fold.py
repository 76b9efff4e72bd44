"""One training of a fine-tuning run: one fold with one seed, resumed exactly, with its best epoch kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m2d_hub.errors import AudioError, CheckpointError
from m2d_hub.io import reading

from ..data.sampling import EpochPlan, StepSampler
from ..data.skipped import SkippedLog
from ..evaluation.labelled import Fold
from ..evaluation.metrics import Metric
from ..runs.folder import RunFolder, RunLog, read_metrics
from ..runs.loop import Loop, LoopPlan
from ..runs.processes import StopRequests
from ..runs.state import read_tensors, require_finite, write_tensors
from .model import AudioClassifier
from .trainer import FinetuneTrainer

logger = logging.getLogger(__name__)

BEST_FILE = "best.pt"
LINEAR_FILE = "linear.pt"
RESULT_FILE = "result.pt"
HINT = "Delete its folder to repeat this training."


@dataclass(frozen=True)
class Score:
    """Result of an epoch on the validation clips."""

    step: int  # optimizer steps done
    score: float
    loss: float

    def is_worse_than(self, other: Score) -> bool:
        """Compare by the score, then by the loss."""
        return (other.score, -other.loss) > (self.score, -self.loss)


@dataclass(frozen=True)
class BestCheckpoint:
    """The best epoch so far, with the model's weights after it."""

    score: Score
    weights: dict[str, Tensor]

    def write(self, path: Path) -> None:
        """Write it atomically."""
        write_tensors(path, {"score": vars(self.score), "weights": self.weights})

    @classmethod
    def read(cls, path: Path) -> BestCheckpoint | None:
        """Read what :meth:`write` wrote; None if the file does not exist."""
        if not path.exists():
            return None
        values = read_tensors(path, HINT)
        with reading(path, "the best epoch", HINT, CheckpointError):
            return cls(Score(**values["score"]), dict(values["weights"]))


@dataclass(frozen=True)
class FoldResult:
    """Result of one training."""

    best_epoch: float  # 0: the frozen model with the layer of linear evaluation
    epochs: float  # trained, until the patience ran out
    valid_score: float
    valid_loss: float
    linear_valid_score: float | None  # of linear evaluation, if it was tried
    seconds: float  # of all optimizer steps
    test_scores: Tensor  # (N, C) probabilities

    def write(self, folder: RunFolder) -> None:
        """Write the result, and remove the checkpoints of the training."""
        write_tensors(folder.root / RESULT_FILE, vars(self))
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        for name in (BEST_FILE, LINEAR_FILE):
            (folder.root / name).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: RunFolder) -> FoldResult | None:
        """Read the result of a finished training; None if it is not finished."""
        path = folder.root / RESULT_FILE
        if not path.exists():
            return None
        values = read_tensors(path, HINT)
        with reading(path, "a training's result", HINT, CheckpointError):
            return cls(**values)


class FoldRun:
    """Batches, validation and best epoch of one training, which :class:`Loop` calls."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: FinetuneTrainer,
        fold: Fold,
        plan: EpochPlan,
        metric: Metric,
        seed: int,
        skipped: SkippedLog,
    ):
        self.folder, self.trainer, self.fold, self.plan = folder, trainer, fold, plan
        self.metric, self.seed, self.skipped = metric, seed, skipped
        self.config, self.accelerator = trainer.config, trainer.accelerator
        self.stepper, self.train_step = trainer.stepper, trainer.train_step
        self.total_steps = self.config.epochs * plan.steps_per_epoch
        self.best: BestCheckpoint | None = None

    def train(self, stop: StopRequests, progress: bool) -> FoldResult:
        """Train to the last epoch or until the patience runs out; the model ends with its best weights."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self.best = BestCheckpoint.read(self.folder.root / BEST_FILE)
        plan = LoopPlan(
            name=f"{self.fold.name}, seed {self.seed}",
            total_steps=self.total_steps,
            accumulate_steps=self.config.accumulate_steps,
            save_every_steps=self.config.save_every_steps,
            keep_every_steps=self.total_steps + 1,
            hint="lower lr or check the data",
        )
        classifier, linear = self.trainer.classifier, None
        if self.config.try_linear and isinstance(classifier, AudioClassifier):
            linear = self._fit_linear(classifier)
        done = Loop(self.folder, self, plan, stop, progress).run()
        return self._finish(done, linear)

    def measure(self, done: int, log: RunLog | None) -> dict[str, Any]:
        """Report skipped clips and validate at the end of an epoch; return values to record."""
        for clip in self.skipped.add(("", clip) for clip in self.trainer.skipped):
            logger.warning("row %d is skipped: %s", clip.row, clip.error)
        self.trainer.skipped.clear()
        metrics: dict[str, Any] = {"epoch": done / self.plan.steps_per_epoch}
        if not self._validates(done):
            return metrics
        try:
            found = self._validate(done)
        except AudioError as error:  # do not lose the training
            logger.warning("Step %d is not validated, since a validation clip is gone: %s", done, error)
            return metrics
        if self.best is None or self.config.select == "last" or self.best.score.is_worse_than(found):
            self.best = BestCheckpoint(found, self._weights(done))
        return metrics | {"validation_loss": found.loss, "validation_score": found.score}

    def _validate(self, done: int) -> Score:
        logits, targets = self.trainer.logits(self.fold.valid), self.fold.valid.targets
        require_finite(logits, f"the model's output for the validation clips after step {done}")
        score = self.metric(self.trainer.classifier.probabilities(logits), targets)
        return Score(done, score, float(self.trainer.objective(logits, targets)))

    def _fit_linear(self, classifier: AudioClassifier) -> BestCheckpoint:
        """Return the frozen model with the layer of linear evaluation; the training keeps its own head."""
        path = self.folder.root / LINEAR_FILE
        known = BestCheckpoint.read(path)
        self.accelerator.wait_for_everyone()
        if known is not None:
            return known
        initial = self._weights(0)
        classifier.fit_head(self.fold, self.seed)
        linear = BestCheckpoint(self._validate(0), self._weights(0))
        classifier.backbone.load_state_dict(initial)
        if self.accelerator.is_main_process:
            linear.write(path)
        return linear

    def _validates(self, done: int) -> bool:
        every = self.config.validate_every_epochs * self.plan.steps_per_epoch
        return done % every == 0 or done == self.total_steps

    def is_done(self, done: int) -> bool:
        """Return whether the last epoch is reached or the patience has run out."""
        if done >= self.total_steps:
            return True
        if self.config.patience is None or self.best is None or not self._validates(done):
            return False
        return done - self.best.score.step >= self.config.patience * self.plan.steps_per_epoch

    def batches(self, first_step: int) -> Iterable[Any]:
        """Return the training batches of this process, from a step on."""
        sampler = StepSampler(
            plan=self.plan,
            accumulate_steps=self.config.accumulate_steps,
            first_step=first_step,
            total_steps=self.total_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return self.trainer.classifier.batches(self.fold.train, sampler, self.seed)

    def before_save(self, log: RunLog | None) -> None:
        """Write the best epoch before the checkpoint, so that a resumed run finds the same one."""
        if log is not None and self.best is not None:
            self.best.write(self.folder.root / BEST_FILE)

    def _weights(self, done: int) -> dict[str, Tensor]:
        """Return a copy of the model's weights on the CPU, in every process."""
        weights = self.trainer.classifier.backbone.state_dict()
        require_finite(weights, f"the model after step {done}")
        return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _finish(self, done: int, linear: BestCheckpoint | None) -> FoldResult:
        best = self.best or BestCheckpoint(self._validate(done), self._weights(done))
        if linear is not None and not linear.score.is_worse_than(best.score):
            best = linear
        classifier, per_epoch = self.trainer.classifier, self.plan.steps_per_epoch
        classifier.backbone.load_state_dict(best.weights)
        result = FoldResult(
            best_epoch=best.score.step / per_epoch,
            epochs=done / per_epoch,
            valid_score=best.score.score,
            valid_loss=best.score.loss,
            linear_valid_score=None if linear is None else linear.score.score,
            seconds=sum(line["seconds"] for line in read_metrics(self.folder.metrics_file)),
            test_scores=classifier.probabilities(self.trainer.logits(self.fold.test)),
        )
        logger.info(
            "%s, seed %d: %s %.4f on the validation clips in epoch %g of %g",
            self.fold.name,
            self.seed,
            self.metric.name,
            result.valid_score,
            result.best_epoch,
            result.epochs,
        )
        return result
