"""What fields of a pre-training's configuration may be, and which of them hang together."""

from __future__ import annotations

from m2d_hub.checks import COUNT, NOT_NEGATIVE, POSITIVE, POSITIVE_INTEGER, SHARE, Numbers

from ..data.sampling import SEED
from ..runs.settings import Needs, Yields

OWN_SIZE = Numbers(least=1, is_whole=True, or_none="the method's own")
OF_DATA = Numbers(least=1, is_whole=True, or_none="that of the data")
MEASURED = "that of the prepared data, else a measured one"
NUMBERS = {
    "predictor_dim": OWN_SIZE,
    "predictor_depth": OWN_SIZE,
    "predictor_head_width": OWN_SIZE,
    "mask_ratio": SHARE,
    "mask_run_frames": POSITIVE_INTEGER,
    "m2d_weight": NOT_NEGATIVE,
    "epochs": POSITIVE_INTEGER,
    "warmup_epochs": NOT_NEGATIVE,
    "batch_size": POSITIVE_INTEGER,
    "accumulate_steps": POSITIVE_INTEGER,
    "base_lr": NOT_NEGATIVE,
    "min_lr": NOT_NEGATIVE,
    "decay_epochs": Numbers(least=0, without_ends="least", or_none="all after the warm-up"),
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": Numbers(least=0, without_ends="least", or_inf="no clipping"),
    "ema_start": SHARE,
    "ema_end": SHARE,
    "seed": SEED,
    "sample_rate": POSITIVE_INTEGER,
    "mean": Numbers(or_none=MEASURED),
    "std": Numbers(least=0, without_ends="least", or_none=MEASURED),
    "min_list_size": COUNT,
    "samples_per_epoch": Numbers(least=1, is_whole=True, or_none="the whole list"),
    "noise_ratio": SHARE,
    "noise_mean": Numbers(or_none=MEASURED),
    "num_workers": COUNT,
    "save_every_steps": POSITIVE_INTEGER,
    "keep_every_epochs": POSITIVE_INTEGER,
    "analyse_every_steps": COUNT,
    "validate_every_epochs": POSITIVE_INTEGER,
    "linear_eval_every_epochs": POSITIVE_INTEGER,
}
OFFLINE_NUMBERS = {"dim": OF_DATA, "text_dim": OF_DATA, "weight": NOT_NEGATIVE}

_BY_TARGET_ENCODER = {"method": ("m2d", "m2d-all-patches")}
_OF_SOUND = {"in_channels": (1,)}
_OF_TEXTS = {"kind": ("text",)}
NEEDS: Needs = {
    "mask_run_frames": {"mask_kind": ("time",)},
    "target_start": _BY_TARGET_ENCODER,
    "ema_start": _BY_TARGET_ENCODER,
    "ema_end": _BY_TARGET_ENCODER,
    "sample_rate": _OF_SOUND,
    "transform": _OF_SOUND,
    "short_clips": _OF_SOUND,
    "samples_per_epoch": {"weighted_sampling": (True,)},
    "noise_mean": {"noise_ratio": POSITIVE},
}
YIELDS: Yields = {"samples_per_epoch": {"min_list_size": 0}}
OFFLINE_NEEDS: Needs = {
    "loss": {"kind": ("features",)},
    "label_loss": {"kind": ("labels",)},
    "text_dim": _OF_TEXTS,
    "text_encoder": _OF_TEXTS,
    "text_pooling": _OF_TEXTS,
}
