"""Pre-training of Masked Modeling Duo (M2D, M2D-X, MSM-MAE)."""

from .analysis import explained_variance_auc, rank_me
from .config import OfflineConfig, PredictorConfig, PretrainConfig
from .noise import mix_noise
from .pretrainer import LossTerms, Pretrainer, build_pretrainer
from .schedules import ema_decay, learning_rate

__all__ = [
    "LossTerms",
    "OfflineConfig",
    "PredictorConfig",
    "PretrainConfig",
    "Pretrainer",
    "build_pretrainer",
    "ema_decay",
    "explained_variance_auc",
    "learning_rate",
    "mix_noise",
    "rank_me",
]
