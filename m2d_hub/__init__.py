"""Masked Modeling Duo (M2D / M2D-X): pre-trained audio models, embeddings in three lines.

>>> import m2d_hub
>>> model = m2d_hub.load_model("m2d-mini")
>>> clip = model.encode_clip("dog.wav")  # Tensor (1, N_F·D)
"""

from importlib.metadata import version as _version

from m2d_hub.config import ClapConfig, EncoderConfig, FrontendConfig, HeadConfig, ModelConfig
from m2d_hub.errors import (
    AudioError,
    CheckpointError,
    ChecksumError,
    ConfigError,
    DownloadError,
    M2DError,
    UnknownModelError,
)
from m2d_hub.hub import load_model
from m2d_hub.model import M2D
from m2d_hub.registry import ModelInfo
from m2d_hub.results import Frames, Tag

__version__ = _version("m2d-hub")

__all__ = [
    "M2D",
    "AudioError",
    "CheckpointError",
    "ChecksumError",
    "ClapConfig",
    "ConfigError",
    "DownloadError",
    "EncoderConfig",
    "Frames",
    "FrontendConfig",
    "HeadConfig",
    "M2DError",
    "ModelConfig",
    "ModelInfo",
    "Tag",
    "UnknownModelError",
    "__version__",
    "load_model",
]
