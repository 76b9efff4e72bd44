"""Frozen, validated configuration of a fine-tuning run."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from m2d_hub.checks import require
from m2d_hub.errors import ConfigError

from ..evaluation.labelled import Select, Split
from ..runs.processes import Precision
from ..runs.settings import Count, NotNegative, Positive, PositiveInt, Seed, Share, settings

logger = logging.getLogger(__name__)

BelowOne = Annotated[float, Field(ge=0, lt=1)]
RAND_AUGMENT = r"^rand(-[a-z]+[\d.]+)*$"
AUDIO_ONLY = (
    *("crop_frames", "crop_from_start", "short_clips", "crop_test", "adjust_positions"),
    *("freeze_patch_embed", "frozen_blocks", "head_norm", "try_linear"),
    *("loss", "metric", "loss_over_classes", "class_weights"),
    *("mixed", "frequency_mask", "time_mask", "resized_crop", "patchout_ratio", "patchout_drops_marked"),
)


def _batch_size(value: int) -> int:
    if value < 2:
        raise ValueError("at least 2, since the head normalises over the batch")
    return value


@settings
class ImageConfig:
    """Augmentation and regularisation of images; the defaults are masked autoencoders' for ViT-Base."""

    drop_path: BelowOne = 0.1  # share of samples that skip the last block; grows linearly from the first
    cutmix_ratio: NotNegative = 1.0  # both parameters of CutMix's beta distribution, used as often as mixup
    label_smoothing: BelowOne = 0.1
    rand_augment: Annotated[str, Field(pattern=RAND_AUGMENT)] | None = "rand-m9-mstd0.5-inc1"  # timm's syntax
    erase_share: Share = 0.25  # of images with a random rectangle erased


@settings
class FinetuneConfig:
    """One fine-tuning of a pre-trained model (paper, section IV-B and Table II).

    The global batch of one optimizer step is ``batch_size`` · ``accumulate_steps`` · processes clips.
    """

    YIELDS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"epochs": {"min_steps": 0}}

    # Model
    crop_frames: PositiveInt | None = None  # T of the training crops; None: the model's window
    crop_from_start: bool = False  # False: from a random position
    short_clips: Literal["own", "pad", "repeat"] = "own"  # shorter than the crop: unchanged, padded, repeated
    crop_test: bool = False  # clips are evaluated by a crop from their start, or whole
    adjust_positions: bool = False  # fit the window to the crop, by interpolated positions
    freeze_patch_embed: bool = False
    frozen_blocks: Count = 0  # from the first; they freeze the patch embedding too

    head_std: NotNegative | None = 2e-5  # of the head's first weights (paper, IV-B); None: as nn.Linear
    head_norm: bool = True  # the head normalises its input over the batch
    try_linear: bool = False  # epoch 0 competes: the frozen model with the layer of linear evaluation

    # Task
    loss: Literal["cross-entropy", "bce"] | None = None  # None: cross-entropy, or bce for multi-label lists
    metric: Literal["accuracy", "map", "icbhi"] | None = None  # None: accuracy, or mAP for multi-label lists
    loss_over_classes: bool = False  # divide the cross-entropy by the number of classes
    normal_class: str = "Normal"  # of the metric icbhi; case is ignored
    class_weights: bool = False  # of the cross-entropy: inverse to the classes' training clips

    select: Select = "valid"  # epoch to keep: best on valid clips, the last, or best on test clips
    valid_share: BelowOne = 0.0  # of the training clips, held out to choose the epoch; 0: the valid split

    # Augmentation
    images: ImageConfig | None = None  # for lists of images; None: audio
    mixup_ratio: Share = 0.0  # both parameters of mixup's beta distribution
    mixed: Literal["waveform", "log-mel"] = "waveform"  # input of mixup
    frequency_mask: Count = 0  # maximum number of mels in a band masked by SpecAugment
    time_mask: Count = 0  # maximum number of masked frames in a row
    num_masks: PositiveInt = 1  # of each kind
    shared_masks: bool = False  # the same masks for all clips of a batch
    resized_crop: bool = False
    patchout_ratio: BelowOne = 0.0  # share of the patches that structured patchout drops
    patchout_drops_marked: bool = False  # only whole rows and columns, as the paper describes

    # Optimisation
    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "adamw"
    lr: Positive = 5e-4  # peak, not scaled by the batch
    min_lr: NotNegative = 0.0  # at the end of the cosine
    cosine_after_warmup: bool = False  # start the cosine after the warm-up, not at the first step
    cosine_epochs: Positive | None = None  # of half a cosine, after which the rate rises; None: all epochs
    warmup_epochs: NotNegative = 5
    epochs: PositiveInt = 50
    min_steps: Count = 0  # epochs, warm-up and patience are scaled up to this number of optimizer steps
    batch_size: Annotated[int, AfterValidator(_batch_size)] = 64  # clips of one process and one forward pass
    accumulate_steps: PositiveInt = 1  # forward passes of one optimizer step
    weight_decay: NotNegative = 0.0
    decay_all: bool = False  # also biases, norms and one-dimensional tensors
    beta2: BelowOne = 0.999  # of adam and adamw
    amsgrad: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor of the rate per block, towards the input
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] | None = None  # of all gradients; None: off
    patience: PositiveInt | None = None  # epochs without a better validation score; None: all epochs
    precision: Precision = "fp32"  # as the reference; "auto" is half precision on GPUs
    compile: bool = False  # blocks through torch.compile; numbers differ by rounding
    seed: Seed = 42  # of the first training; further ones count up

    # Data
    weighted_sampling: bool = False  # class-balancing draws without replacement instead of shuffling
    balance: Share = 1.0  # exponent of the draws' weights: 1 balances classes, 0 clips
    samples_per_epoch: PositiveInt | None = None  # of weighted sampling; None: the whole list
    num_workers: Count = 0

    # Record
    validate_every_epochs: PositiveInt = 1
    save_every_steps: PositiveInt = 500

    def __post_init__(self) -> None:
        Split(self.select, self.valid_share)
        require(
            self.head_norm or not self.try_linear,
            "try_linear fits the head's normalisation, which head_norm=false removes; set only one of them.",
        )
        require(
            self.select != "last" or not (self.try_linear or self.patience),
            "try_linear and patience compare epochs, but select='last' takes the last epoch; set "
            "try_linear=false and patience=none.",
        )
        require(
            not self.adjust_positions or self.crop_frames is not None,
            "adjust_positions fits the window to the crop; set crop_frames too, for example 1001 for 10 s.",
        )
        require(
            self.loss != "bce" or not (self.class_weights or self.loss_over_classes),
            "class_weights and loss_over_classes apply to cross-entropy, not to loss 'bce'; remove them.",
        )
        require(
            self.loss != "bce" or self.metric in (None, "map"),
            f"loss 'bce' is for several labels per clip, metric {self.metric!r} for one; remove metric.",
        )
        require(
            not (self.cosine_after_warmup and self.cosine_epochs),
            "cosine_epochs sets when the rate rises again, which it never does with cosine_after_warmup; "
            "remove one of them.",
        )
        if self.images is not None:
            self._check_images()

    def _check_images(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if wrong := [name for name in AUDIO_ONLY if getattr(self, name) != defaults[name]]:
            names = ", ".join(f"{name} {getattr(self, name)!r}" for name in wrong)
            raise ConfigError(f"images is set, but {names} only applies to audio; remove it.")
        require(
            self.batch_size % 2 == 0,
            f"batch_size must be even for images, which are mixed in pairs, got {self.batch_size}.",
        )

    @property
    def split(self) -> Split:
        """Use of the list's splits."""
        return Split(self.select, self.valid_share)

    def scaled_to(self, steps_per_epoch: int) -> FinetuneConfig:
        """Return the configuration with enough epochs for ``min_steps``; warm-up and patience scale too."""
        epochs = max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))
        growth = epochs / self.epochs
        scaled: dict[str, Any] = {
            "epochs": epochs,
            "warmup_epochs": self.warmup_epochs * growth,
            "cosine_epochs": None if self.cosine_epochs is None else self.cosine_epochs * growth,
            "patience": None if self.patience is None else math.ceil(self.patience * growth),
        }
        if growth > 1:
            changes = ", ".join(
                f"{name} {getattr(self, name):g} becomes {value:g}" for name, value in scaled.items() if value
            )
            logger.info("min_steps=%d needs more epochs of this list: %s.", self.min_steps, changes)
        return dataclasses.replace(self, **scaled)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)
