"""Pre-training of Masked Modeling Duo (M2D, M2D-X, MSM-MAE)."""

from .analysis import explained_variance_auc, rank_me
from .config import OfflineConfig, PredictorConfig, PretrainConfig
from .finetune import FinetuneOptions, finetune
from .finetune_config import FinetuneConfig
from .linear_eval import LinearEvalResult, linear_eval
from .linear_options import LinearEvalOptions
from .noise import mix_noise
from .pretrainer import LossTerms, Pretrainer, build_pretrainer
from .schedules import ema_decay, learning_rate

__all__ = [
    "FinetuneConfig",
    "FinetuneOptions",
    "LinearEvalOptions",
    "LinearEvalResult",
    "LossTerms",
    "OfflineConfig",
    "PredictorConfig",
    "PretrainConfig",
    "Pretrainer",
    "build_pretrainer",
    "ema_decay",
    "explained_variance_auc",
    "finetune",
    "learning_rate",
    "linear_eval",
    "mix_noise",
    "rank_me",
]
