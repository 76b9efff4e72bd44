"""One training of a fine-tuning run: a round of the data with one seed, resumed exactly, best epoch kept."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2d_hub.errors import CheckpointError, M2DError
from m2d_hub.files import replacing

from ..data.sampling import EpochPlan, StepSampler
from ..evaluation.labelled import Round
from ..evaluation.metrics import Metric
from ..runs.folder import RunFolder
from ..runs.log import RunLog
from ..runs.state import (
    gather_state,
    list_checkpoints,
    read_state,
    restore_state,
    write_state,
)
from .data import FinetuneDataset, build_train_loader
from .head import fit_head
from .loop import FinetuneStep, FinetuneTrainer

logger = logging.getLogger(__name__)

BEST_FILE = "best.pt"
LINEAR_FILE = "linear.pt"
RESULT_FILE = "result.pt"


@dataclass(frozen=True)
class Best:
    """The best epoch so far by the validation score, then by the validation loss."""

    step: int  # optimizer steps done
    score: float
    loss: float
    weights: dict[str, Tensor]

    def is_beaten_by(self, score: float, loss: float) -> bool:
        """Whether another epoch is better."""
        return (score, -loss) > (self.score, -self.loss)


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
    """The loop over one training's steps, with what is done between them."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: FinetuneTrainer,
        data: Round,
        plan: EpochPlan,
        metric: Metric,
        seed: int,
        progress: bool,
    ):
        """Goes on from the latest checkpoint in ``folder``."""
        self.folder, self.trainer, self.data, self.plan = folder, trainer, data, plan
        self.metric, self.seed, self.progress = metric, seed, progress
        self.config, self.accelerator = trainer.config, trainer.accelerator
        self.total_steps = self.config.epochs * plan.steps_per_epoch
        folder.root.mkdir(parents=True, exist_ok=True)
        self.first_step = self._resume()
        self.best = _read_best(folder.root / BEST_FILE)
        self.record = RunLog(folder, self.first_step) if self.accelerator.is_main_process else None

    def train(self) -> MemberResult:
        """Trains until the last epoch or until the patience runs out; the model ends as its best epoch."""
        from tqdm import tqdm

        batches = iter(self._loader())
        is_shown = self.progress and self.accelerator.is_main_process
        with tqdm(total=self.total_steps, initial=self.first_step, unit="step", disable=not is_shown) as bar:
            bar.set_description(f"{self.data.name}, seed {self.seed}")
            step = self.first_step
            linear = self._try_linear() if self.config.try_linear else None
            while not self._is_done(step):
                micro_batches = list(itertools.islice(batches, self.config.accumulate_steps))
                result = self.trainer.train_step(micro_batches, step)
                step += 1
                self._note(step, result)
                if step % self.config.save_every_steps == 0:
                    self._save(step)
                bar.update()
        return self._finish(step, linear)

    def _note(self, done: int, result: FinetuneStep) -> None:
        """Records one step, and how the model does on the validation clips after it."""
        if not math.isfinite(result.loss):
            raise M2DError(
                f"the loss is {result.loss} at step {done}: lower lr or check the data. "
                "The last checkpoint is from before."
            )
        metrics: dict[str, Any] = {"epoch": done / self.plan.steps_per_epoch, **vars(result)}
        if self._validates(done):
            found = self._validate(done)
            if self.best is None or self.best.is_beaten_by(found.score, found.loss):
                self.best = replace(found, weights=self._weights())
            metrics |= {"validation_loss": found.loss, "validation_score": found.score}
        if self.record is not None:
            self.record.write(done, metrics)

    def _validate(self, done: int) -> Best:
        """How the model does on the validation clips; without its weights."""
        logits, targets = self.trainer.logits(self.data.valid), self.data.valid.targets
        score = self.metric(self._probabilities(logits), targets)
        return Best(done, score, float(self.trainer.objective(logits, targets)), {})

    def _try_linear(self) -> Best:
        """The frozen model with the layer of linear evaluation; the training's own head stays as it is."""
        path = self.folder.root / LINEAR_FILE
        known = _read_best(path)
        self.accelerator.wait_for_everyone()
        if known is not None:
            return known
        head = self.trainer.backbone.head
        assert head is not None, "build_model puts one on"
        fresh = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        fit_head(self.trainer.backbone, self.data, self.config, self.seed)
        linear = replace(self._validate(0), weights=self._weights())
        head.load_state_dict(fresh)
        if self.record is not None:
            write_tensors(path, vars(linear))
        return linear

    def _validates(self, done: int) -> bool:
        every = self.config.validate_every_epochs * self.plan.steps_per_epoch
        return done % every == 0 or done == self.total_steps

    def _is_done(self, done: int) -> bool:
        if done >= self.total_steps:
            return True
        if self.config.patience is None or self.best is None or not self._validates(done):
            return False
        return done - self.best.step >= self.config.patience * self.plan.steps_per_epoch

    def _resume(self) -> int:
        checkpoints = list_checkpoints(self.folder)
        if not checkpoints:
            return 0
        state = read_state(checkpoints[-1])
        restore_state(state, self.trainer.model, self.trainer.optimizer)
        logger.info("Resumed %s, seed %d, from step %d", self.data.name, self.seed, state.step)
        return state.step

    def _loader(self):
        backbone = self.trainer.backbone
        dataset = FinetuneDataset(
            self.data.train, self.config, backbone.config.frontend, backbone.config.encoder, self.seed
        )
        sampler = StepSampler(
            plan=self.plan,
            batch_size=self.config.batch_size,
            accumulate_steps=self.config.accumulate_steps,
            first_step=self.first_step,
            total_steps=self.total_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return build_train_loader(dataset, sampler, self.config.num_workers)

    def _save(self, done: int) -> None:
        """The best epoch first: a run that is killed in between finds it again, with the same weights."""
        state = gather_state(done, self.trainer.model, self.trainer.optimizer)
        if self.record is not None:
            if self.best is not None:
                write_tensors(self.folder.root / BEST_FILE, vars(self.best))
            write_state(self.folder, state, keep_every_steps=self.total_steps + 1)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the model's weights on the CPU; every process has one."""
        weights = self.trainer.backbone.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _finish(self, done: int, linear: Best | None) -> MemberResult:
        if self.record is not None:
            self.record.close()
        best = self.best
        assert best is not None, "the last step is validated"
        if linear is not None and not linear.is_beaten_by(best.score, best.loss):
            best = linear
        self.trainer.backbone.load_state_dict(best.weights)
        per_epoch = self.plan.steps_per_epoch
        result = MemberResult(
            best_epoch=best.step / per_epoch,
            epochs=done / per_epoch,
            valid_score=best.score,
            valid_loss=best.loss,
            linear_valid_score=None if linear is None else linear.score,
            seconds=sum(line["seconds"] for line in read_metrics(self.folder)),
            test_scores=self._probabilities(self.trainer.logits(self.data.test)),
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

    def _probabilities(self, logits: Tensor) -> Tensor:
        head = self.trainer.backbone.head
        assert head is not None, "build_model puts one on"
        return head.scores(logits)


def save_result(folder: RunFolder, result: MemberResult) -> None:
    """Writes a finished training's result, and removes what it would have gone on from."""
    write_tensors(folder.root / RESULT_FILE, vars(result))
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for name in (BEST_FILE, LINEAR_FILE):
        (folder.root / name).unlink(missing_ok=True)


def read_result(folder: RunFolder) -> MemberResult | None:
    """The result of a finished training, or None."""
    path = folder.root / RESULT_FILE
    return MemberResult(**_read_tensors(path)) if path.exists() else None


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """One dictionary for each optimizer step of a training."""
    return [json.loads(line) for line in folder.metrics_file.read_text(encoding="utf-8").splitlines()]


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    """Writes tensors and numbers, complete or not at all."""
    with replacing(path) as partial:
        torch.save(values, partial)


def _read_best(path: Path) -> Best | None:
    return Best(**_read_tensors(path)) if path.exists() else None


def _read_tensors(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Delete its folder: that training is then done again."
        ) from error
    return values
