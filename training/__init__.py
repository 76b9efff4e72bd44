"""Pre-training, linear evaluation and fine-tuning of Masked Modeling Duo (M2D, M2D-X, MSM-MAE)."""

from .analysis import explained_variance_auc, rank_me
from .config import OfflineConfig, PredictorConfig, PretrainConfig
from .finetune import FinetuneOptions, FinetuneResult, finetune
from .finetune_config import FinetuneConfig
from .finetune_presets import load_finetune_preset
from .linear_eval import LinearEvalResult, linear_eval
from .linear_options import LinearEvalOptions
from .noise import mix_noise
from .presets import load_preset
from .pretrainer import LossTerms, Pretrainer, build_pretrainer
from .run import pretrain
from .schedules import ema_decay, learning_rate
from .sources import RunOptions

__all__ = [
    "FinetuneConfig",
    "FinetuneOptions",
    "FinetuneResult",
    "LinearEvalOptions",
    "LinearEvalResult",
    "LossTerms",
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
    "mix_noise",
    "pretrain",
    "rank_me",
]
