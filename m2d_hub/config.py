"""Frozen, validated configurations of the frontend, the encoder, the head and the whole model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from m2d_hub.checks import Numbers, require, require_choice, require_numbers, require_size, require_types
from m2d_hub.errors import ConfigError, reason_of

Transform = Literal["convolution", "fft"]
HeadFeatures = Literal["frames", "tokens"]
Activation = Literal["sigmoid", "softmax"]
TextProjection = Literal["none", "linear", "mlp"]
TextPooling = Literal["mean", "cls", "last", "own"]
EPSILON = 2.0**-23  # added to the power before the logarithm: the machine epsilon of float32
LEVEL_EPSILON = 1e-12  # the same where levels are normalised: below the quantisation noise of 16 bits

MAX_INPUT = 1_024, 1_000_000  # mels and frames of a window
_WIDTH = Numbers(1, 65_536, is_whole=True)
_FRONTEND_LIMITS = {
    "sample_rate": Numbers(100, 768_000, is_whole=True),
    "window_samples": Numbers(1, 32_768, is_whole=True),
    "hop_samples": Numbers(1, 1_000_000, is_whole=True),
    "n_mels": Numbers(1, MAX_INPUT[0], is_whole=True),
    "f_min_hz": Numbers(),
    "f_max_hz": Numbers(),
    "mean": Numbers(-1e6, 1e6),
    "std": Numbers(1e-6, 1e6),
    "level_frames": Numbers(1, 1_000_000, is_whole=True),
}
_ENCODER_LIMITS = {
    "in_channels": _WIDTH,
    "embed_dim": _WIDTH,
    "depth": Numbers(1, 1_000, is_whole=True),
    "head_width": _WIDTH,
    "mlp_ratio": Numbers(1, 64, is_whole=True),
    "norm_eps": Numbers(1e-12, 1.0),
}


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel spectrogram (paper, section IV-A); ``mean`` and ``std`` default to those of AudioSet."""

    sample_rate: int = 16_000  # Hz
    window_samples: int = 400  # Hann window and FFT size, samples
    hop_samples: int = 160  # samples between frames
    n_mels: int = 80  # F
    f_min_hz: float = 50.0
    f_max_hz: float = 8_000.0
    mean: float = -7.1  # of the log-mel values of the pre-training set
    std: float = 4.2
    transform: Transform = "convolution"  # as in nnAudio, or "fft": the same up to rounding, in half the time
    # Normalise the level of each block of frames, and limit values to this many dB below it; None: neither.
    range_db: float | None = None
    level_frames: int = 16  # of a block

    def __post_init__(self) -> None:
        require_numbers(self, _FRONTEND_LIMITS)
        require(
            0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate / 2,
            f"The mel band {self.f_min_hz}-{self.f_max_hz} Hz must be within 0-{self.sample_rate / 2} Hz "
            f"(half of sample_rate={self.sample_rate}).",
        )
        require_choice("transform", self.transform, get_args(Transform))
        if self.range_db is not None:
            require_numbers(self, {"range_db": Numbers(1.0, 200.0)})

    @property
    def epsilon(self) -> float:
        """Added to the mel power before the logarithm."""
        return EPSILON if self.range_db is None else LEVEL_EPSILON

    @property
    def hop_s(self) -> float:
        """Seconds between spectrogram frames."""
        return self.hop_samples / self.sample_rate

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a waveform; the first is centred on sample 0."""
        return num_samples // self.hop_samples + 1

    def span(self, num_frames: int) -> int:
        """Return the number of samples from which ``num_frames`` frames are computed."""
        return (num_frames - 1) * self.hop_samples + self.window_samples

    def num_complete_frames(self, num_samples: int) -> int:
        """Return the number of frames that fit into ``num_samples`` samples; the inverse of :meth:`span`."""
        return (num_samples - self.window_samples) // self.hop_samples + 1

    @classmethod
    def for_sample_rate(cls, sample_rate: int, **overrides: Any) -> FrontendConfig:
        """Return the published frontend at ``sample_rate``: 25 ms windows, 10 ms hops, 50 Hz to Nyquist."""
        fields = {
            "window_samples": sample_rate // 40,
            "hop_samples": sample_rate // 100,
            "f_max_hz": sample_rate / 2,
        }
        return cls(sample_rate=sample_rate, **(fields | overrides))


@dataclass(frozen=True)
class EncoderConfig:
    """Vision transformer on log-mel patches; by default ViT-Base on 6.08 s (paper, section IV-A)."""

    input_size: tuple[int, int] = (80, 608)  # (F mels, T frames)
    patch_size: tuple[int, int] = (16, 16)  # (mels, frames)
    in_channels: int = 1
    embed_dim: int = 768  # D
    depth: int = 12  # blocks, L
    head_width: int = 64  # channels of one attention head
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    # Patches attend to those at most this many patches before or after them in time, with learned relative
    # biases in place of positions in time. None: absolute positions, attention within the whole window.
    time_reach: int | None = None

    def __post_init__(self) -> None:
        require_size(self, "input_size", MAX_INPUT)
        require_size(self, "patch_size", MAX_INPUT)
        require_numbers(self, _ENCODER_LIMITS)
        if self.time_reach is not None:
            require_numbers(self, {"time_reach": Numbers(0, 10_000, is_whole=True)})
        (mels, frames), (patch_mels, patch_frames) = self.input_size, self.patch_size
        require(
            mels % patch_mels == 0,
            f"input_size {mels}x{frames} cannot be divided into patches of {patch_mels}x{patch_frames}: "
            f"{mels} mels is not a multiple of {patch_mels}.",
        )
        require(
            frames >= patch_frames,
            f"input_size {mels}x{frames} is shorter than one patch of {patch_mels}x{patch_frames}.",
        )
        require(
            self.embed_dim % self.head_width == 0 and self.embed_dim % 4 == 0,
            f"embed_dim {self.embed_dim} must be a multiple of head_width {self.head_width} and of 4, which "
            "the 2-D sin-cos positions need.",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and time, (N_F, N_T); frames after the last full patch are ignored."""
        return self.input_size[0] // self.patch_size[0], self.input_size[1] // self.patch_size[1]

    @property
    def num_heads(self) -> int:
        """Attention heads of each block."""
        return self.embed_dim // self.head_width

    @property
    def frame_dim(self) -> int:
        """Features of one time frame, N_F·D (paper, equation 4)."""
        return self.grid[0] * self.embed_dim


@dataclass(frozen=True)
class HeadConfig:
    """Classifier on clip features: batch normalisation without affine parameters, then a linear layer."""

    num_classes: int
    features: HeadFeatures = "frames"  # input: mean over time frames (N_F·D), or over all tokens (D)
    activation: Activation = "sigmoid"  # logits to scores: multi-label, or one label per clip
    # Index of the parent of each class, -1 for none: parents score at least as high as their children.
    parents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_numbers(self, {"num_classes": Numbers(1, 1_000_000, is_whole=True)})
        if self.parents is not None:
            self._check_parents(self.parents)
        require_choice("features", self.features, get_args(HeadFeatures))
        require_choice("activation", self.activation, get_args(Activation))

    def _check_parents(self, parents: tuple[int, ...]) -> None:
        indices = Numbers(-1, self.num_classes - 1, is_whole=True)
        require(
            isinstance(parents, (tuple, list))
            and len(parents) == self.num_classes
            and all(parent in indices for parent in parents),
            f"head parents must be {self.num_classes} numbers, each {indices}, got {parents!r:.60}.",
        )
        object.__setattr__(self, "parents", tuple(parents))
        for child in range(self.num_classes):
            require(
                len(self.ancestors(child)) < self.num_classes,
                f"head parents contain a cycle at class {child}: remove one of its parents.",
            )

    def ancestors(self, child: int) -> list[int]:
        """Return the parent of a class, the parent of that, and so on."""
        found: list[int] = []
        while self.parents is not None and (child := self.parents[child]) >= 0:
            found.append(child)
            if len(found) == self.num_classes:
                break
        return found


@dataclass(frozen=True)
class ClapConfig:
    """Projections into a space shared with text (M2D-CLAP)."""

    dim: int = 768  # width of the shared space
    audio_blocks: int = 0  # 0: two linear layers on the mean token; n: a semantic token with n blocks
    audio_hidden_dim: int = 768  # between the two linear layers
    text_projection: TextProjection = "linear"
    text_dim: int = 768  # width of the text encoder's features
    text_hidden_dim: int = 768  # between the two layers of an "mlp"
    text_encoder: str = "thenlper/gte-base"  # Hugging Face repository of the text encoder
    text_pooling: TextPooling = "mean"  # own: the model's sentence embeddings

    def __post_init__(self) -> None:
        require_choice("text_projection", self.text_projection, get_args(TextProjection))
        require_choice("text_pooling", self.text_pooling, get_args(TextPooling))
        require_numbers(self, {"audio_blocks": Numbers(0, 4, is_whole=True)})
        dims = ("dim", "audio_hidden_dim", "text_dim", "text_hidden_dim")
        require_numbers(self, dict.fromkeys(dims, _WIDTH))
        require_types(self, {"text_encoder": str})

    @property
    def audio_mlp_ratio(self) -> int:
        """MLP ratio of the audio projection's blocks, as published: 1 for one or two blocks, 2 for more."""
        return 1 if self.audio_blocks <= 2 else 2


_MODEL_TYPES: dict[str, type | tuple[type, ...]] = {
    "frontend": FrontendConfig,
    "encoder": EncoderConfig,
    "head": (HeadConfig, type(None)),
    "clap": (ClapConfig, type(None)),
    "labels": (tuple, list, type(None)),
    "own_length_windows": bool,
    **dict.fromkeys(("name", "license", "source"), (str, type(None))),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build an :class:`m2d_hub.M2D`; saved as ``config.json``."""

    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig | None = None
    labels: tuple[str, ...] | None = None  # class names in the order of the head's outputs
    clap: ClapConfig | None = None
    own_length_windows: bool = False  # each clip is one window as long as the clip
    name: str | None = None  # alias or folder of the weights
    license: str | None = None
    source: str | None = None  # where the weights were published

    def __post_init__(self) -> None:
        require_types(self, _MODEL_TYPES)
        require(
            self.frontend.n_mels == self.encoder.input_size[0],
            f"The frontend has {self.frontend.n_mels} mels but the encoder expects "
            f"{self.encoder.input_size[0]}.",
        )
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
            require(all(isinstance(label, str) for label in self.labels), "labels must be strings.")
            expected = None if self.head is None else self.head.num_classes
            require(
                len(self.labels) == expected,
                f"There are {len(self.labels)} labels for a head with {expected} classes; give one each.",
            )

    @property
    def head_dim(self) -> int:
        """Input features of the head: N_F·D for frames, D for tokens."""
        by_frames = self.head is not None and self.head.features == "frames"
        return self.encoder.frame_dim if by_frames else self.encoder.embed_dim

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of JSON types, for ``config.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a configuration from a dict that :meth:`to_dict` returned.

        Raises:
            ConfigError: A field is unknown or its value is not allowed.
        """
        parts = {"frontend": FrontendConfig, "encoder": EncoderConfig, "head": HeadConfig, "clap": ClapConfig}
        try:
            built: dict[str, Any] = {
                key: parts[key](**value) if key in parts and value is not None else value
                for key, value in values.items()
            }
            return cls(**built)
        except (AttributeError, TypeError) as error:  # a field of another name, or a part of another kind
            raise ConfigError(f"This is not the configuration of a model: {reason_of(error)}.") from error
