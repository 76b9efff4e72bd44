"""Frozen, validated configuration of a fine-tuning run."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from m2d_hub.checks import Numbers, require, require_choice, require_numbers
from m2d_hub.errors import ConfigError

from ..evaluation.splits import Select, Split
from ..runs.devices import Precision
from ..runs.settings import Needs, Yields
from .allowed import NEEDS, NUMBERS, SOUNDS_ONLY, YIELDS
from .augment import AugmentRanges
from .image_config import ImageConfig

logger = logging.getLogger(__name__)

TaskLoss = Literal["cross-entropy", "bce"]
MetricName = Literal["accuracy", "map", "icbhi"]
OptimizerName = Literal["sgd", "lars", "adam", "adamw"]
Mixed = Literal["waveform", "log-mel"]
ShortClips = Literal["own", "pad", "repeat"]


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning of a pre-trained model (paper, section IV-B and Table II).

    The global batch of one optimizer step is ``batch_size`` · ``accumulate_steps`` · processes clips.
    """

    NEEDS: ClassVar[Needs] = NEEDS
    YIELDS: ClassVar[Yields] = YIELDS

    # Model
    crop_frames: int | None = None  # T of the training crops; None: the model's window
    crop_from_start: bool = False  # or from anywhere
    short_clips: ShortClips = (
        "own"  # those shorter than the crop: as they are, padded with silence, or repeated
    )
    crop_test: bool = False  # clips are scored by a crop from their start, or whole
    adjust_positions: bool = False  # the window becomes the crop, by interpolated positions
    freeze_patch_embed: bool = False
    frozen_blocks: int = 0  # the first ones, and the patch embedding with them

    head_std: float = 2e-5  # of the head's first weights (paper, section IV-B)
    head_norm: bool = True  # the head normalises its input over the batch
    try_linear: bool = False  # epoch 0 competes: the frozen model with the layer of linear evaluation

    # Task
    loss: TaskLoss | None = None  # None: cross-entropy, or bce where clips have several labels
    metric: MetricName | None = None  # None: accuracy, or mAP where clips have several labels
    loss_over_classes: bool = False  # cross-entropy is divided by the number of classes too
    normal_class: str = "Normal"  # of the metric icbhi; upper and lower case are the same
    class_weights: bool = False  # of the cross-entropy: inverse to the classes' training clips

    select: Select = "valid"  # the epoch that counts: best on valid clips, the last, or best on test clips
    valid_share: float = 0.0  # of the training clips, held out to choose the epoch; 0: the list's valid split

    # Augmentation
    images: ImageConfig | None = None  # of clips that are pictures; None: they are sounds
    mixup_ratio: float = 0.0  # both parameters of mixup's beta distribution
    mixed: Mixed = "waveform"  # what mixup mixes
    frequency_mask: int = 0  # most mels of a band that SpecAugment masks
    time_mask: int = 0  # most frames of a run
    num_masks: int = 1  # bands, and runs
    shared_masks: bool = False  # the same ones for all clips of a batch
    resized_crop: bool = False
    patchout_ratio: float = 0.0  # share of the patches that structured patchout drops

    # Optimisation
    optimizer: OptimizerName = "adamw"
    lr: float = 5e-4  # peak, as it is: not scaled by the batch
    min_lr: float = 0.0  # at the end of the cosine
    cosine_after_warmup: bool = False  # the cosine begins then, or has run since the start
    cosine_epochs: float | None = None  # of half a cosine, after which the rate rises again; None: all epochs
    warmup_epochs: float = 5
    epochs: int = 50
    min_steps: int = 0  # fewer: epochs, warm-up and patience grow together to this many optimizer steps
    batch_size: int = 64  # clips of one process and one forward pass
    accumulate_steps: int = 1  # forward passes of one optimizer step
    weight_decay: float = 0.0
    decay_all: bool = False  # of biases, norms and one-dimensional tensors too
    beta2: float = 0.999  # of adam and adamw
    amsgrad: bool = False
    layer_decay: float = 1.0  # factor of the rate from each block to the one before it
    clip_norm: float | None = None  # of all gradients together; None: no clipping
    patience: int | None = None  # epochs without a better validation score; None: all epochs
    precision: Precision = "fp32"  # as the reference; "auto" is half precision on GPUs
    compile: bool = False  # blocks through torch.compile; numbers differ by rounding
    seed: int = 42  # of the first run; further ones count up

    # Data
    weighted_sampling: bool = False  # class-balancing draws without replacement instead of shuffling
    balance: float = 1.0  # exponent of the draws' weights: 1 draws all classes alike, 0 all clips
    samples_per_epoch: int | None = None  # of weighted sampling; None: the whole list
    num_workers: int = 0

    # Record
    validate_every_epochs: int = 1
    save_every_steps: int = 500

    def __post_init__(self) -> None:
        self._check_choices()
        require_numbers(self, NUMBERS)
        require(
            self.batch_size in Numbers(least=2, is_whole=True),
            f"batch_size must be at least 2, got {self.batch_size!r}: the head normalises over the batch.",
        )
        require(
            not (self.head_norm is False and self.try_linear),
            "try_linear fits the head's normalisation, which head_norm=false leaves out: set only one.",
        )
        require(
            self.split.select != "last" or not (self.try_linear or self.patience),
            "try_linear and patience choose by how well the model does on clips, but select='last' takes the "
            "last epoch: set try_linear=false and patience=none.",
        )
        require(
            not self.adjust_positions or self.crop_frames is not None,
            "adjust_positions fits the window to the crop: set crop_frames too, for instance 1001 for 10 s.",
        )
        require(
            self.loss != "bce" or not (self.class_weights or self.loss_over_classes),
            "class_weights and loss_over_classes are for cross-entropy, but loss is 'bce', which is averaged "
            "over the classes: leave them out.",
        )
        require(
            self.loss != "bce" or self.metric in (None, "map"),
            f"loss 'bce' is for several labels a clip, which metric {self.metric!r} cannot score: "
            "leave metric out.",
        )
        require(
            not (self.cosine_after_warmup and self.cosine_epochs),
            "cosine_epochs says when the rate rises again, which it never does with cosine_after_warmup: "
            "leave one out.",
        )
        if self.images is not None:
            self._check_images()

    def _check_choices(self) -> None:
        require_choice("optimizer", self.optimizer, get_args(OptimizerName))
        require_choice("precision", self.precision, get_args(Precision))
        require_choice("mixed", self.mixed, get_args(Mixed))
        require_choice("short_clips", self.short_clips, get_args(ShortClips))
        if self.loss is not None:
            require_choice("loss", self.loss, get_args(TaskLoss))
        if self.metric is not None:
            require_choice("metric", self.metric, get_args(MetricName))

    def _check_images(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if wrong := [name for name in SOUNDS_ONLY if getattr(self, name) != defaults[name]]:
            told = ", ".join(f"{name} {getattr(self, name)!r}" for name in wrong)
            raise ConfigError(f"images makes the clips pictures, but {told} is of sounds: leave it out.")
        require(
            self.batch_size % 2 == 0,
            f"batch_size must be even for pictures, which are mixed in pairs, got {self.batch_size}.",
        )

    @property
    def split(self) -> Split:
        """What the list's splits are used for."""
        return Split(self.select, self.valid_share)

    @property
    def augmentation(self) -> AugmentRanges:
        """How strong the augmentations are."""
        return AugmentRanges(
            mixup_ratio=self.mixup_ratio,
            frequency_mask=self.frequency_mask,
            time_mask=self.time_mask,
            num_masks=self.num_masks,
            shared_masks=self.shared_masks,
            resized_crop=self.resized_crop,
            patchout_ratio=self.patchout_ratio,
        )

    def scaled_to(self, steps_per_epoch: int) -> FinetuneConfig:
        """The run with as many epochs as ``min_steps`` asks for, warm-up and patience in proportion.

        Where that changes anything, the log tells.

        Args:
            steps_per_epoch: Optimizer steps that the data gives.
        """
        epochs = max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))
        growth = epochs / self.epochs
        grown: dict[str, Any] = {
            "epochs": epochs,
            "warmup_epochs": self.warmup_epochs * growth,
            "cosine_epochs": None if self.cosine_epochs is None else self.cosine_epochs * growth,
            "patience": None if self.patience is None else math.ceil(self.patience * growth),
        }
        if growth > 1:
            told = ", ".join(
                f"{name} {getattr(self, name):g} becomes {value:g}" for name, value in grown.items() if value
            )
            logger.info("min_steps=%d asks for more epochs of this list: %s.", self.min_steps, told)
        return dataclasses.replace(self, **grown)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)
