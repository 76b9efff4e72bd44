"""Masked Modeling Duo (M2D / M2D-X): pre-trained audio models, embeddings in three lines.

>>> import m2d_hub
>>> model = m2d_hub.load_model("m2d-mini")
>>> clip = model.encode_clip("dog.wav")  # Tensor (1, N_F·D)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2d_hub.config import ClapConfig, EncoderConfig, FrontendConfig, HeadConfig, ModelConfig
    from m2d_hub.corpus.draw_map import draw_map
    from m2d_hub.corpus.embed_files import Summary, embed_files
    from m2d_hub.corpus.search import Match, search
    from m2d_hub.corpus.sound_map import Duplicates, MapPoint, SoundMap
    from m2d_hub.corpus.sources import Source, find_sources
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
    from m2d_hub.pretrained.cache import model_info
    from m2d_hub.pretrained.registry import ModelInfo, list_models
    from m2d_hub.results import Frames, Tag
    from m2d_hub.stream import Stream, StreamWindow
    from m2d_hub.zero_shot import classify_by_text

# Loaded when first asked for: the model needs huggingface_hub, which takes 0.2 s to import.
_HOMES = {
    "M2D": "model",
    "AudioError": "errors",
    "CheckpointError": "errors",
    "ChecksumError": "errors",
    "ClapConfig": "config",
    "ConfigError": "errors",
    "DownloadError": "errors",
    "Duplicates": "corpus.sound_map",
    "EncoderConfig": "config",
    "Frames": "results",
    "FrontendConfig": "config",
    "HeadConfig": "config",
    "M2DError": "errors",
    "MapPoint": "corpus.sound_map",
    "Match": "corpus.search",
    "ModelConfig": "config",
    "ModelInfo": "pretrained.registry",
    "SoundMap": "corpus.sound_map",
    "Source": "corpus.sources",
    "Stream": "stream",
    "StreamWindow": "stream",
    "Summary": "corpus.embed_files",
    "Tag": "results",
    "UnknownModelError": "errors",
    "classify_by_text": "zero_shot",
    "draw_map": "corpus.draw_map",
    "embed_files": "corpus.embed_files",
    "find_sources": "corpus.sources",
    "list_models": "pretrained.registry",
    "load_model": "hub",
    "model_info": "pretrained.cache",
    "search": "corpus.search",
}

__all__ = [
    "M2D",
    "AudioError",
    "CheckpointError",
    "ChecksumError",
    "ClapConfig",
    "ConfigError",
    "DownloadError",
    "Duplicates",
    "EncoderConfig",
    "Frames",
    "FrontendConfig",
    "HeadConfig",
    "M2DError",
    "MapPoint",
    "Match",
    "ModelConfig",
    "ModelInfo",
    "SoundMap",
    "Source",
    "Stream",
    "StreamWindow",
    "Summary",
    "Tag",
    "UnknownModelError",
    "__version__",
    "classify_by_text",
    "draw_map",
    "embed_files",
    "find_sources",
    "list_models",
    "load_model",
    "model_info",
    "search",
]

_SUBMODULES = ("clients", "export", "plots")  # public ones; the rest is internal


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("m2d-hub")
    if name in _SUBMODULES:
        return import_module(f"m2d_hub.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'm2d_hub' has no attribute {name!r}")
    return getattr(import_module(f"m2d_hub.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
