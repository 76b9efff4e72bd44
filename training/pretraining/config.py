"""Frozen, validated configuration of a pre-training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from m2d_hub.checks import require, require_choice, require_numbers, require_size
from m2d_hub.config import EncoderConfig, FrontendConfig, Transform

from ..data.masking import count_visible
from ..runs.devices import Precision
from ..runs.settings import Needs, Yields
from .allowed import NEEDS, NUMBERS, OFFLINE_NEEDS, OFFLINE_NUMBERS, YIELDS

Method = Literal["m2d", "m2d-all-patches", "msm-mae"]
Loss = Literal["cosine", "mse"]
MaskKind = Literal["random", "time", "structured"]
LabelLoss = Literal["bce", "cross-entropy"]
OfflineKind = Literal["features", "labels", "text"]
ShortClips = Literal["pad", "repeat"]
TextPooling = Literal["mean", "cls", "last", "own"]
StartParts = Literal["all", "encoder"]
TargetStart = Literal["own", "encoder"]

AUDIOSET_MEAN, AUDIOSET_STD = -7.1, 4.2  # of AudioSet's log-mel values (paper, section IV-A)


@dataclass(frozen=True)
class OfflineConfig:
    """Offline network of M2D-X: the additional task (paper, section III-B1)."""

    NEEDS: ClassVar[Needs] = OFFLINE_NEEDS
    YIELDS: ClassVar[Yields] = {}

    kind: OfflineKind  # per-frame features, labels of clips, or captions
    dim: int | None = None  # classes, features, or width of the shared text space; None: of the data
    weight: float = 1.0  # λ_off of equation 6
    loss: Loss = "cosine"  # of per-frame features
    label_loss: LabelLoss = "bce"  # of labels: several a clip, or one
    text_dim: int | None = None  # features of the text encoder; None: of the data, or dim
    text_encoder: str = "thenlper/gte-base"  # Hugging Face repository or folder of the captions' encoder
    text_pooling: TextPooling = "mean"  # of its tokens

    def __post_init__(self) -> None:
        require_choice("offline.kind", self.kind, get_args(OfflineKind))
        require_choice("offline.loss", self.loss, get_args(Loss))
        require_choice("offline.label_loss", self.label_loss, get_args(LabelLoss))
        require_choice("offline.text_pooling", self.text_pooling, get_args(TextPooling))
        require_numbers(self, OFFLINE_NUMBERS, "offline.")


@dataclass(frozen=True)
class PredictorConfig:
    """Predictor g_θ, the decoder of masked autoencoders (paper, section IV-A)."""

    dim: int
    depth: int  # blocks
    head_width: int  # channels of one attention head


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run; the defaults are M2D/0.7 on AudioSet (paper, sections IV-A and IV-B).

    The global batch of one optimizer step is ``batch_size`` · ``accumulate_steps`` · processes clips.
    """

    NEEDS: ClassVar[Needs] = NEEDS
    YIELDS: ClassVar[Yields] = YIELDS

    # Method
    method: Method = "m2d"
    input_size: tuple[int, int] = (80, 608)  # (F mels, T frames), or (height, width) of an image
    patch_size: tuple[int, int] = (16, 16)  # (mels, frames)
    in_channels: int = 1
    embed_dim: int = 768  # D
    depth: int = 12  # blocks of the encoder
    head_width: int = 64  # channels of one attention head of the encoder
    predictor_dim: int | None = None  # None: 512; MSM-MAE 384
    predictor_depth: int | None = None  # None: 8; MSM-MAE 4
    predictor_head_width: int | None = None  # channels; None: 32; MSM-MAE 64
    mask_ratio: float = 0.7
    mask_kind: MaskKind = "random"
    mask_run_frames: int = 5  # token frames of one run, where mask_kind is "time"
    loss: Loss | None = None  # None: cosine; MSM-MAE mse
    standardise_target: bool = True
    start_parts: StartParts = "all"  # of the weights that a run starts from
    target_start: TargetStart = "own"  # of the target encoder, where a start has none: random, or online's
    m2d_weight: float = 1.0  # λ_m2d of equation 6
    offline: OfflineConfig | None = None

    # Optimisation
    epochs: int = 300
    warmup_epochs: float = 20
    batch_size: int = 512  # clips of one process and one forward pass
    accumulate_steps: int = 1  # forward passes of one optimizer step
    base_lr: float = 3e-4  # for a global batch of 256
    min_lr: float = 0.0
    decay_epochs: float | None = None  # of the falling rate at the end; None: all after the warm-up
    weight_decay: float = 0.05
    clip_norm: float = 3.0  # of all gradients together
    ema_start: float = 0.99995  # τ at the first step
    ema_end: float = 0.99999  # τ at the last step
    precision: Precision = "auto"  # bf16 on GPUs that have it, else fp16; fp32 on other devices
    compile: bool = False  # blocks through torch.compile; numbers differ by rounding
    seed: int = 42

    # Data
    sample_rate: int = 16_000  # Hz
    mean: float | None = None  # of the log-mel values; None: of the prepared shards, else measured
    std: float | None = None
    transform: Transform = "convolution"  # of the log-mel frontend
    short_clips: ShortClips = "pad"  # with silence, or by repetition
    min_list_size: int = 0  # a shorter list is repeated up to this many clips an epoch
    weighted_sampling: bool = False  # class-balancing draws without replacement instead of shuffling
    samples_per_epoch: int | None = None  # of weighted sampling; None: the whole list
    noise_ratio: float = 0.0  # η of equation 5
    noise_mean: float | None = None  # as mean, of the background noise
    num_workers: int = 0

    # Record
    save_every_steps: int = 1000
    keep_every_epochs: int = 50  # epochs between the checkpoints that are kept
    analyse_every_steps: int = 1000  # RankMe and explained variance on 1,000 clips; 0: never
    validate_every_epochs: int = 1
    linear_eval_every_epochs: int = 10

    def __post_init__(self) -> None:
        require_size(self, "input_size")
        require_size(self, "patch_size")
        self._check_choices()
        require_numbers(self, NUMBERS)
        require(
            self.method != "msm-mae" or self.loss != "cosine",
            "msm-mae predicts pixels by mean squared error: leave loss unset or give 'mse', got 'cosine'.",
        )
        require(
            self.predictor.dim % self.predictor.head_width == 0 and self.predictor.dim % 4 == 0,
            f"predictor_dim {self.predictor.dim} must be a multiple of 4 and of "
            f"predictor_head_width {self.predictor.head_width}.",
        )
        visible = count_visible(self.mask_kind, self.grid, self.mask_ratio)
        require(
            0 < visible < self.num_patches,
            f"mask_ratio {self.mask_ratio} leaves {visible} of {self.num_patches} patches visible, where "
            f"mask_kind is {self.mask_kind}: there must be both visible and masked ones.",
        )

    def _check_choices(self) -> None:
        require_choice("method", self.method, get_args(Method))
        require_choice("mask_kind", self.mask_kind, get_args(MaskKind))
        require_choice("precision", self.precision, get_args(Precision))
        require_choice("start_parts", self.start_parts, get_args(StartParts))
        require_choice("target_start", self.target_start, get_args(TargetStart))
        require_choice("transform", self.transform, get_args(Transform))
        require_choice("short_clips", self.short_clips, get_args(ShortClips))
        if self.loss is not None:
            require_choice("loss", self.loss, get_args(Loss))

    @property
    def encoder(self) -> EncoderConfig:
        """Configuration of the online encoder."""
        return EncoderConfig(
            input_size=self.input_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            embed_dim=self.embed_dim,
            depth=self.depth,
            head_width=self.head_width,
        )

    @property
    def predictor(self) -> PredictorConfig:
        """Sizes of the predictor: those given, else the method's own."""
        dim, depth, head_width = (384, 4, 64) if self.method == "msm-mae" else (512, 8, 32)
        return PredictorConfig(
            dim=dim if self.predictor_dim is None else self.predictor_dim,
            depth=depth if self.predictor_depth is None else self.predictor_depth,
            head_width=head_width if self.predictor_head_width is None else self.predictor_head_width,
        )

    @property
    def frontend(self) -> FrontendConfig:
        """Log-mel frontend with the statistics that the inputs are standardised by."""
        return FrontendConfig.for_sample_rate(
            self.sample_rate,
            n_mels=self.input_size[0],
            mean=AUDIOSET_MEAN if self.mean is None else self.mean,
            std=AUDIOSET_STD if self.std is None else self.std,
            transform=self.transform,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and time, (N_F, N_T)."""
        return self.encoder.grid

    @property
    def num_patches(self) -> int:
        """N = N_F · N_T."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_pixels(self) -> int:
        """Values of one patch, all channels together."""
        return self.patch_size[0] * self.patch_size[1] * self.in_channels

    @property
    def is_image(self) -> bool:
        """Whether the inputs are pictures rather than spectrograms."""
        return self.in_channels == 3

    def resolve(self) -> PretrainConfig:
        """The same run with the method's own sizes and loss written out."""
        predictor = self.predictor
        return dataclasses.replace(
            self,
            predictor_dim=predictor.dim,
            predictor_depth=predictor.depth,
            predictor_head_width=predictor.head_width,
            loss=self.loss or ("mse" if self.method == "msm-mae" else "cosine"),
            mean=self.frontend.mean,
            std=self.frontend.std,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """What :meth:`to_dict` gave, also after JSON.

        Raises:
            ConfigError: A field is unknown, or a value not allowed.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, f"PretrainConfig has no {', '.join(unknown)}: leave it out.")
        offline = values.get("offline")
        return cls(
            **{**values, "offline": OfflineConfig(**offline) if isinstance(offline, Mapping) else offline}
        )
