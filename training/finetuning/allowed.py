"""Values that fields of a fine-tuning's configuration may have, and which of them hang together."""

from __future__ import annotations

from m2d_hub.checks import COUNT, NOT_NEGATIVE, POSITIVE, POSITIVE_INTEGER, SHARE, Numbers

from ..data.sampling import SEED
from ..runs.settings import Needs, Yields

NUMBERS = {
    "crop_frames": Numbers(least=1, is_whole=True, or_none="the model's window"),
    "frozen_blocks": COUNT,
    "head_std": NOT_NEGATIVE,
    "mixup_ratio": SHARE,
    "frequency_mask": COUNT,
    "time_mask": COUNT,
    "num_masks": POSITIVE_INTEGER,
    "patchout_ratio": Numbers(least=0, most=1, without_ends="most"),
    "lr": POSITIVE,
    "min_lr": NOT_NEGATIVE,
    "cosine_epochs": Numbers(least=0, without_ends="least", or_none="all epochs"),
    "warmup_epochs": NOT_NEGATIVE,
    "epochs": POSITIVE_INTEGER,
    "min_steps": COUNT,
    "accumulate_steps": POSITIVE_INTEGER,
    "weight_decay": NOT_NEGATIVE,
    "beta2": Numbers(least=0, most=1, without_ends="most"),
    "layer_decay": Numbers(least=0, most=1, without_ends="least"),
    "clip_norm": Numbers(least=0, without_ends="least", or_none="no clipping", or_inf="no clipping"),
    "patience": Numbers(least=1, is_whole=True, or_none="all epochs"),
    "seed": SEED,
    "balance": SHARE,
    "samples_per_epoch": Numbers(least=1, is_whole=True, or_none="the whole list"),
    "num_workers": COUNT,
    "validate_every_epochs": POSITIVE_INTEGER,
    "save_every_steps": POSITIVE_INTEGER,
}
ADAMS = ("adam", "adamw")
NEEDS: Needs = {
    "normal_class": {"metric": ("icbhi",)},
    "mixed": {"mixup_ratio": POSITIVE},
    "num_masks": {"frequency_mask": POSITIVE, "time_mask": POSITIVE},
    "shared_masks": {"frequency_mask": POSITIVE, "time_mask": POSITIVE},
    "decay_all": {"weight_decay": POSITIVE},
    "beta2": {"optimizer": ADAMS},
    "amsgrad": {"optimizer": ADAMS},
    "balance": {"weighted_sampling": (True,)},
    "samples_per_epoch": {"weighted_sampling": (True,)},
}
YIELDS: Yields = {"epochs": {"min_steps": 0}}
SOUNDS_ONLY = (
    *("crop_frames", "crop_from_start", "short_clips", "crop_test", "adjust_positions"),
    *("freeze_patch_embed", "frozen_blocks", "head_norm", "try_linear"),
    *("loss", "metric", "loss_over_classes", "class_weights"),
    *("mixed", "frequency_mask", "time_mask", "resized_crop", "patchout_ratio"),
)
