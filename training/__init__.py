"""Pre-training, linear evaluation and fine-tuning of Masked Modeling Duo (M2D, M2D-X, MSM-MAE)."""

from .data.lists.make import MadeList, make_list
from .data.noise import mix_noise
from .finetuning.config import FinetuneConfig
from .finetuning.presets import load_finetune_preset
from .finetuning.run import FinetuneOptions, FinetuneResult, finetune
from .linear.options import LinearEvalOptions
from .linear.run import LinearEvalResult, linear_eval
from .pretraining.analysis import explained_variance_auc, rank_me
from .pretraining.config import OfflineConfig, PredictorConfig, PretrainConfig
from .pretraining.presets import load_preset
from .pretraining.pretrainer import LossTerms, Pretrainer, build_pretrainer
from .pretraining.run import pretrain
from .pretraining.run_data import RunOptions
from .runs.schedules import ema_decay, learning_rate

__all__ = [
    "FinetuneConfig",
    "FinetuneOptions",
    "FinetuneResult",
    "LinearEvalOptions",
    "LinearEvalResult",
    "LossTerms",
    "MadeList",
    "OfflineConfig",
    "PredictorConfig",
    "PretrainConfig",
    "Pretrainer",
    "RunOptions",
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
    "pretrain",
    "rank_me",
]
