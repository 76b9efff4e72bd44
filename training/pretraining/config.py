"""Frozen, validated configuration of a pre-training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from m2d_hub.config import EncoderConfig, FrontendConfig, Transform
from m2d_hub.errors import ConfigError

from ..data.masking import count_visible
from ..runs.processes import Precision
from ..runs.settings import Count, NotNegative, Positive, PositiveInt, Seed, Share, Size, settings

Loss = Literal["cosine", "mse"]

AUDIOSET_MEAN, AUDIOSET_STD = -7.1, 4.2  # of AudioSet's log-mel values (paper, section IV-A)


@settings
class OfflineConfig:
    """Offline network of M2D-X: the additional task (paper, section III-B1)."""

    kind: Literal["features", "labels", "text"]  # per-frame features, labels of clips, or captions
    dim: PositiveInt | None = None  # classes, features, or width of the shared text space; None: of the data
    weight: NotNegative = 1.0  # λ_off of equation 6
    loss: Loss = "cosine"  # of per-frame features
    label_loss: Literal["bce", "cross-entropy"] = "bce"  # several labels per clip, or one
    text_dim: PositiveInt | None = None  # features of the text encoder; None: of the data, or dim
    text_encoder: str = "thenlper/gte-base"  # Hugging Face repository or folder of the captions' encoder
    text_pooling: Literal["mean", "cls", "last", "own"] = "mean"  # of its tokens


@settings
class AugmentConfig:
    """Augmentation of waveforms: shares of the clips that are changed, and the range of levels."""

    overlap: Share = 0.3  # with another clip, whose labels are added
    filter: Share = 0.4  # spectral tilt and band limits
    reverberation: Share = 0.15
    noise: Share = 0.4  # white to brown, 5 to 40 dB below the clip
    silence: Share = 0.02  # replaced by silence, without labels
    gain_db: NotNegative = 40.0  # largest attenuation


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """Predictor g_θ, the decoder of masked autoencoders (paper, section IV-A)."""

    dim: int
    depth: int  # blocks
    head_width: int  # channels of one attention head


@settings
class PretrainConfig:
    """One pre-training run; the defaults are M2D/0.7 on AudioSet (paper, sections IV-A and IV-B).

    The global batch of one optimizer step is ``batch_size`` · ``accumulate_steps`` · processes clips.
    """

    YIELDS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"samples_per_epoch": {"min_list_size": 0}}

    # Method
    method: Literal["m2d", "m2d-all-patches", "msm-mae"] = "m2d"
    input_size: Size = (80, 608)  # (F mels, T frames), or (height, width) of an image
    patch_size: Size = (16, 16)  # (mels, frames)
    in_channels: PositiveInt = 1
    embed_dim: PositiveInt = 768  # D
    depth: PositiveInt = 12  # blocks of the encoder
    head_width: PositiveInt = 64  # channels of one attention head of the encoder
    time_reach: Count | None = None  # patches that a patch attends to in time; None: all, with positions
    predictor_dim: PositiveInt | None = None  # None: 512; MSM-MAE 384
    predictor_depth: PositiveInt | None = None  # None: 8; MSM-MAE 4
    predictor_head_width: PositiveInt | None = None  # channels; None: 32; MSM-MAE 64
    mask_ratio: Share = 0.7
    mask_kind: Literal["random", "time", "structured"] = "random"
    mask_run_frames: PositiveInt = 5  # token frames of one run, where mask_kind is "time"
    loss: Loss | None = None  # None: cosine; MSM-MAE mse
    standardise_target: bool = True
    start_parts: Literal["all", "encoder"] = "all"  # parts taken from the weights that a run starts from
    target_start: Literal["own", "encoder"] = "own"  # target encoder without start weights: random, or online
    m2d_weight: NotNegative = 1.0  # λ_m2d of equation 6
    offline: OfflineConfig | None = None

    # Optimisation
    epochs: PositiveInt = 300
    warmup_epochs: NotNegative = 20
    batch_size: PositiveInt = 512  # clips of one process and one forward pass
    accumulate_steps: PositiveInt = 1  # forward passes of one optimizer step
    base_lr: NotNegative = 3e-4  # for a global batch of 256
    min_lr: NotNegative = 0.0
    decay_epochs: Positive | None = None  # of the falling rate at the end; None: all after the warm-up
    weight_decay: NotNegative = 0.05
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 3.0  # of all gradients; inf: no clipping
    ema_start: Share = 0.99995  # τ at the first step
    ema_end: Share = 0.99999  # τ at the last step
    precision: Precision = "auto"  # bf16 on GPUs that have it, else fp16; fp32 on other devices
    compile: bool = False  # blocks through torch.compile; numbers differ by rounding
    seed: Seed = 42

    # Data
    sample_rate: PositiveInt = 16_000  # Hz
    mean: float | None = None  # of the log-mel values; None: of the prepared shards, else measured
    std: Positive | None = None
    transform: Transform = "convolution"  # of the log-mel frontend
    range_db: Positive | None = None  # of log-mel values with normalised level; None: values as they are
    level_frames: PositiveInt = 16  # over which the level is measured
    short_clips: Literal["pad", "repeat"] = "pad"  # with silence, or by repetition
    min_list_size: Count = 0  # a shorter list is repeated up to this many clips per epoch
    weighted_sampling: bool = False  # class-balancing draws without replacement instead of shuffling
    samples_per_epoch: PositiveInt | None = None  # of weighted sampling; None: the whole list
    augment: AugmentConfig | None = None  # of waveforms
    noise_ratio: Share = 0.0  # η of equation 5
    noise_mean: float | None = None  # as mean, of the background noise
    num_workers: Count = 0

    # Record
    save_every_steps: PositiveInt = 1000
    keep_every_epochs: PositiveInt = 50  # epochs between the checkpoints that are kept
    analyse_every_steps: Count = 1000  # RankMe and explained variance on 1,000 clips; 0: never
    validate_every_epochs: PositiveInt = 1
    linear_eval_every_epochs: PositiveInt = 10

    def __post_init__(self) -> None:
        predictor, visible = self.predictor, count_visible(self.mask_kind, self.grid, self.mask_ratio)
        if self.method == "msm-mae" and self.loss == "cosine":
            raise ConfigError(
                "msm-mae predicts pixels by mean squared error: leave loss unset or set 'mse', got 'cosine'."
            )
        if self.time_reach is not None and self.method != "msm-mae":
            raise ConfigError(
                f"time_reach limits the encoder of msm-mae only, got method {self.method!r}: leave it unset."
            )
        if predictor.dim % predictor.head_width or predictor.dim % 4:
            raise ConfigError(
                f"predictor_dim {predictor.dim} is not a multiple of 4 and of predictor_head_width "
                f"{predictor.head_width}: set another size."
            )
        kind = None if self.offline is None else self.offline.kind
        if self.augment is not None and kind not in (None, "labels"):
            raise ConfigError(
                f"augment changes what a clip contains, which offline.kind {kind!r} cannot follow: leave it "
                "unset, or use labels."
            )
        if self.range_db is not None and self.noise_ratio:
            raise ConfigError("range_db and noise_ratio exclude each other: set augment.noise instead.")
        if not 0 < visible < self.num_patches:
            raise ConfigError(
                f"mask_ratio {self.mask_ratio} leaves {visible} of {self.num_patches} patches visible with "
                f"mask_kind {self.mask_kind}: set a ratio that leaves both visible and masked patches."
            )

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
            time_reach=self.time_reach,
        )

    @property
    def predictor(self) -> PredictorConfig:
        """Sizes of the predictor: as given, else the defaults of the method."""
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
            range_db=self.range_db,
            level_frames=self.level_frames,
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
        """Whether the inputs are images rather than spectrograms."""
        return self.in_channels == 3

    def resolve(self) -> PretrainConfig:
        """Return the run with the method's default sizes and loss filled in."""
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
        """Return the fields as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """Build a configuration from what :meth:`to_dict` returned, also after JSON.

        Raises:
            ConfigError: A field is unknown, or a value is not allowed.
        """
        return cls(**values)
