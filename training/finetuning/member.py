"""One training of a fine-tuning run: a round of the data with one seed, resumed exactly, best epoch kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m2d_hub.errors import CheckpointError
from m2d_hub.io import reading

from ..data.sampling import EpochPlan, StepSampler
from ..evaluation.labelled import Fold
from ..evaluation.metrics import Metric
from ..runs.folder import RunFolder
from ..runs.log import RunLog, read_metrics
from ..runs.loop import Loop, LoopPlan
from ..runs.state import read_tensors, require_finite, write_tensors
from ..runs.stopping import StopRequests
from .loop import FinetuneStep, FinetuneTrainer

logger = logging.getLogger(__name__)

BEST_FILE = "best.pt"
LINEAR_FILE = "linear.pt"
RESULT_FILE = "result.pt"
DO_AGAIN = "Delete its folder: that training is then done again."


@dataclass(frozen=True)
class Score:
    """How an epoch does on the validation clips."""

    step: int  # optimizer steps done
    score: float
    loss: float

    def is_beaten_by(self, other: Score) -> bool:
        """Whether another epoch is better: by the score, then by the loss."""
        return (other.score, -other.loss) > (self.score, -self.loss)


@dataclass(frozen=True)
class Best:
    """The best epoch so far, and the model's weights after it."""

    score: Score
    weights: dict[str, Tensor]

    def write(self, path: Path) -> None:
        """Writes it, complete or not at all."""
        write_tensors(path, {"score": vars(self.score), "weights": self.weights})

    @classmethod
    def read(cls, path: Path) -> Best | None:
        """What :meth:`write` wrote, or None."""
        if not path.exists():
            return None
        values = read_tensors(path, DO_AGAIN)
        with reading(path, "the best epoch", DO_AGAIN, CheckpointError):
            return cls(Score(**values["score"]), dict(values["weights"]))


@dataclass(frozen=True)
class MemberResult:
    """Result of one training."""

    best_epoch: float  # 0: the frozen model with the layer of linear evaluation
    epochs: float  # trained, until the patience ran out
    valid_score: float
    valid_loss: float
    linear_valid_score: float | None  # of linear evaluation, where it was tried
    seconds: float  # of optimizer steps, all parts of the training together
    test_scores: Tensor  # (N, C) probabilities


class Member:
    """What a fine-tuning adds to the loop: its batches, and which epoch is the best."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: FinetuneTrainer,
        data: Fold,
        plan: EpochPlan,
        metric: Metric,
        seed: int,
        stop: StopRequests,
        progress: bool,
    ):
        self.folder, self.trainer, self.data, self.plan = folder, trainer, data, plan
        self.metric, self.seed, self.stop, self.progress = metric, seed, stop, progress
        self.config, self.accelerator = trainer.config, trainer.accelerator
        self.total_steps = self.config.epochs * plan.steps_per_epoch
        self.best: Best | None = None

    def train(self) -> MemberResult:
        """Goes on to the last epoch or until the patience runs out; the model ends as its best epoch."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self.best = Best.read(self.folder.root / BEST_FILE)
        config = self.config
        plan = LoopPlan(
            name=f"{self.data.name}, seed {self.seed}",
            total_steps=self.total_steps,
            accumulate_steps=config.accumulate_steps,
            save_every_steps=config.save_every_steps,
            keep_every_steps=self.total_steps + 1,
            advice="lower lr or check the data",
        )
        fit_head = self.trainer.learner.fit_head if config.try_linear else None
        linear = None if fit_head is None else self._try_linear(fit_head)
        done = Loop(self.folder, self.trainer, plan, self.stop, self.progress).run(self)
        return self._finish(done, linear)

    def measure(self, done: int, result: FinetuneStep, log: RunLog | None) -> dict[str, Any]:
        """See Training."""
        metrics: dict[str, Any] = {"epoch": done / self.plan.steps_per_epoch}
        if self._validates(done):
            found = self._validate(done)
            is_last_taken = self.config.select == "last"
            if self.best is None or is_last_taken or self.best.score.is_beaten_by(found):
                self.best = Best(found, self._weights(done))
            metrics |= {"validation_loss": found.loss, "validation_score": found.score}
        return metrics

    def _validate(self, done: int) -> Score:
        """How the model does on the validation clips."""
        logits, targets = self.trainer.logits(self.data.valid), self.data.valid.targets
        require_finite(logits, f"what the model says of the validation clips after step {done}")
        score = self.metric(self.trainer.learner.probabilities(logits), targets)
        return Score(done, score, float(self.trainer.objective(logits, targets)))

    def _try_linear(self, fit_head: Callable[[Fold, int], None]) -> Best:
        """The frozen model with the layer of linear evaluation; the training's own head stays as it is."""
        path = self.folder.root / LINEAR_FILE
        known = Best.read(path)
        self.accelerator.wait_for_everyone()
        if known is not None:
            return known
        fresh = self._weights(0)
        fit_head(self.data, self.seed)
        linear = Best(self._validate(0), self._weights(0))
        self.trainer.learner.model.load_state_dict(fresh)
        if self.accelerator.is_main_process:
            linear.write(path)
        return linear

    def _validates(self, done: int) -> bool:
        every = self.config.validate_every_epochs * self.plan.steps_per_epoch
        return done % every == 0 or done == self.total_steps

    def is_done(self, done: int) -> bool:
        """See Training."""
        if done >= self.total_steps:
            return True
        if self.config.patience is None or self.best is None or not self._validates(done):
            return False
        return done - self.best.score.step >= self.config.patience * self.plan.steps_per_epoch

    def batches(self, first_step: int) -> Iterable[Any]:
        """See Training."""
        sampler = StepSampler(
            plan=self.plan,
            batch_size=self.config.batch_size,
            accumulate_steps=self.config.accumulate_steps,
            first_step=first_step,
            total_steps=self.total_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return self.trainer.learner.batches(self.data.train, sampler, self.seed)

    def before_save(self, log: RunLog | None) -> None:
        """The best epoch first: a run that is killed in between finds it again, with the same weights."""
        if log is not None and self.best is not None:
            self.best.write(self.folder.root / BEST_FILE)

    def _weights(self, done: int) -> dict[str, Tensor]:
        """A copy of the model's weights on the CPU; every process has one."""
        weights = self.trainer.learner.model.state_dict()
        require_finite(weights, f"the model after step {done}")
        return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _finish(self, done: int, linear: Best | None) -> MemberResult:
        best = self.best or Best(self._validate(done), self._weights(done))
        if linear is not None and not linear.score.is_beaten_by(best.score):
            best = linear
        self.trainer.learner.model.load_state_dict(best.weights)
        per_epoch = self.plan.steps_per_epoch
        result = MemberResult(
            best_epoch=best.score.step / per_epoch,
            epochs=done / per_epoch,
            valid_score=best.score.score,
            valid_loss=best.score.loss,
            linear_valid_score=None if linear is None else linear.score.score,
            seconds=sum(line["seconds"] for line in read_metrics(self.folder.metrics_file)),
            test_scores=self.trainer.learner.probabilities(self.trainer.logits(self.data.test)),
        )
        logger.info(
            "%s, seed %d: %s %.4f on the validation clips in epoch %g of %g",
            self.data.name,
            self.seed,
            self.metric.name,
            result.valid_score,
            result.best_epoch,
            result.epochs,
        )
        return result


def save_result(folder: RunFolder, result: MemberResult) -> None:
    """Writes a finished training's result, and removes what it would have gone on from."""
    write_tensors(folder.root / RESULT_FILE, vars(result))
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for name in (BEST_FILE, LINEAR_FILE):
        (folder.root / name).unlink(missing_ok=True)


def read_result(folder: RunFolder) -> MemberResult | None:
    """The result of a finished training, or None."""
    path = folder.root / RESULT_FILE
    if not path.exists():
        return None
    values = read_tensors(path, DO_AGAIN)
    with reading(path, "a training's result", DO_AGAIN, CheckpointError):
        return MemberResult(**values)
