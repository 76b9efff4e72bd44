"""Pre-training, linear evaluation and fine-tuning of Masked Modeling Duo (M2D, M2D-X, MSM-MAE).

>>> from m2d_training import finetune
>>> result = finetune("small", model="m2d-mini", data="labelled.csv", out="runs/mine")
>>> print(result.metric, result.interval)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.lists.make import MadeList, make_list
    from .evaluation.zero_shot import ZeroShotResult, zero_shot
    from .finetuning.config import FinetuneConfig, ImageConfig
    from .finetuning.presets import load_finetune_preset
    from .finetuning.run import FinetuneResult, finetune
    from .linear.run import LinearEvalOptions, LinearEvalResult, linear_eval
    from .pretraining.analysis import explained_variance_auc, rank_me
    from .pretraining.config import OfflineConfig, PredictorConfig, PretrainConfig
    from .pretraining.inputs import mix_noise
    from .pretraining.prepare import PrepareOptions, PrepareResult, prepare
    from .pretraining.presets import load_preset
    from .pretraining.pretrainer import LossTerms, Pretrainer, build_pretrainer
    from .pretraining.run import PretrainResult, pretrain
    from .pretraining.run_data import RunOptions
    from .runs.schedules import ema_decay, learning_rate
    from .suites.results import SuiteResult, TaskResult
    from .suites.run import run_suite
    from .suites.summary import RunSummary, SummaryRow, summarise

# Loaded when first asked for: the commands' help needs no torch.
_HOMES = {
    "FinetuneConfig": "finetuning.config",
    "FinetuneResult": "finetuning.run",
    "ImageConfig": "finetuning.config",
    "LinearEvalOptions": "linear.run",
    "LinearEvalResult": "linear.run",
    "LossTerms": "pretraining.pretrainer",
    "MadeList": "data.lists.make",
    "OfflineConfig": "pretraining.config",
    "PredictorConfig": "pretraining.config",
    "PrepareOptions": "pretraining.prepare",
    "PrepareResult": "pretraining.prepare",
    "PretrainConfig": "pretraining.config",
    "PretrainResult": "pretraining.run",
    "Pretrainer": "pretraining.pretrainer",
    "RunOptions": "pretraining.run_data",
    "RunSummary": "suites.summary",
    "SuiteResult": "suites.results",
    "SummaryRow": "suites.summary",
    "TaskResult": "suites.results",
    "ZeroShotResult": "evaluation.zero_shot",
    "build_pretrainer": "pretraining.pretrainer",
    "ema_decay": "runs.schedules",
    "explained_variance_auc": "pretraining.analysis",
    "finetune": "finetuning.run",
    "learning_rate": "runs.schedules",
    "linear_eval": "linear.run",
    "load_finetune_preset": "finetuning.presets",
    "load_preset": "pretraining.presets",
    "make_list": "data.lists.make",
    "mix_noise": "pretraining.inputs",
    "prepare": "pretraining.prepare",
    "pretrain": "pretraining.run",
    "rank_me": "pretraining.analysis",
    "run_suite": "suites.run",
    "summarise": "suites.summary",
    "zero_shot": "evaluation.zero_shot",
}

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "ImageConfig",
    "LinearEvalOptions",
    "LinearEvalResult",
    "LossTerms",
    "MadeList",
    "OfflineConfig",
    "PredictorConfig",
    "PrepareOptions",
    "PrepareResult",
    "PretrainConfig",
    "PretrainResult",
    "Pretrainer",
    "RunOptions",
    "RunSummary",
    "SuiteResult",
    "SummaryRow",
    "TaskResult",
    "ZeroShotResult",
    "build_pretrainer",
    "ema_decay",
    "explained_variance_auc",
    "finetune",
    "learning_rate",
    "linear_eval",
    "load_finetune_preset",
    "load_preset",
    "make_list",
    "mix_noise",
    "prepare",
    "pretrain",
    "rank_me",
    "run_suite",
    "summarise",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'm2d_training' has no attribute {name!r}")
    return getattr(import_module(f"m2d_training.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
