# ruff: noqa: F401 (names for type checkers)
"""Pre-training, linear evaluation and fine-tuning of Masked Modeling Duo (M2D, M2D-X, MSM-MAE).

>>> from m2d_training import finetune
>>> result = finetune("small", model="m2d-mini", data="labelled.csv", out="runs/mine")
>>> print(result.metric, result.interval)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.lists.make import MadeList, make_list
    from .finetuning.config import FinetuneConfig, ImageConfig
    from .finetuning.presets import load_finetune_preset
    from .finetuning.run import FinetuneResult, finetune
    from .linear.run import LinearEvalOptions, LinearEvalResult, linear_eval
    from .linear.zero_shot import ZeroShotResult, zero_shot
    from .pretraining.analysis import explained_variance_auc, rank_me
    from .pretraining.config import OfflineConfig, PredictorConfig, PretrainConfig
    from .pretraining.prepare import PrepareResult, prepare
    from .pretraining.presets import load_preset
    from .pretraining.pretrainer import LossTerms, Pretrainer, build_pretrainer
    from .pretraining.run import PretrainResult, pretrain
    from .pretraining.trainer import mix_noise
    from .runs.loop import ema_decay, learning_rate
    from .suites.run import SuiteResult, TaskResult, run_suite
    from .suites.summary import RunSummary, SummaryRow, summarise

# Public names by module, loaded when first used: the help of the commands needs no torch.
_NAMES = {
    "data.lists.make": "MadeList make_list",
    "linear.zero_shot": "ZeroShotResult zero_shot",
    "finetuning.config": "FinetuneConfig ImageConfig",
    "finetuning.presets": "load_finetune_preset",
    "finetuning.run": "FinetuneResult finetune",
    "linear.run": "LinearEvalOptions LinearEvalResult linear_eval",
    "pretraining.analysis": "explained_variance_auc rank_me",
    "pretraining.config": "OfflineConfig PredictorConfig PretrainConfig",
    "pretraining.prepare": "PrepareResult prepare",
    "pretraining.presets": "load_preset",
    "pretraining.pretrainer": "LossTerms Pretrainer build_pretrainer",
    "pretraining.run": "PretrainResult pretrain",
    "pretraining.trainer": "mix_noise",
    "runs.loop": "ema_decay learning_rate",
    "suites.run": "SuiteResult TaskResult run_suite",
    "suites.summary": "RunSummary SummaryRow summarise",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'm2d_training' has no attribute {name!r}")
    return getattr(import_module(f"m2d_training.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
