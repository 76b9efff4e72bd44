"""Masked Modeling Duo (M2D / M2D-X): pre-trained audio models, embeddings in three lines.

>>> import m2d_hub
>>> model = m2d_hub.load_model("m2d-mini")
>>> clip = model.encode_clip("dog.wav")  # Tensor (1, N_F·D)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # names are imported on first use, since huggingface_hub takes 0.2 s to import
    from m2d_hub.config import ClapConfig, EncoderConfig, FrontendConfig, HeadConfig, ModelConfig
    from m2d_hub.corpus.detect_files import DetectionSummary, detect_files
    from m2d_hub.corpus.embed_files import Summary, embed_files
    from m2d_hub.corpus.map_page import Duplicates, MapPoint, SoundMap
    from m2d_hub.corpus.search import Match, search
    from m2d_hub.corpus.sound_map import draw_map
    from m2d_hub.corpus.sources import Source, find_sources
    from m2d_hub.detect import Event
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
    from m2d_hub.pretrained.registry import ModelInfo, list_models
    from m2d_hub.pretrained.source import model_info
    from m2d_hub.results import Frames, Segments, Tag
    from m2d_hub.stream import Stream, StreamWindow
    from m2d_hub.zero_shot import classify_by_text

_NAMES = {  # public names by module
    "config": "ClapConfig EncoderConfig FrontendConfig HeadConfig ModelConfig",
    "corpus.detect_files": "DetectionSummary detect_files",
    "corpus.embed_files": "Summary embed_files",
    "corpus.map_page": "Duplicates MapPoint SoundMap",
    "corpus.search": "Match search",
    "corpus.sound_map": "draw_map",
    "corpus.sources": "Source find_sources",
    "detect": "Event",
    "errors": "AudioError CheckpointError ChecksumError ConfigError DownloadError M2DError UnknownModelError",
    "hub": "load_model",
    "model": "M2D",
    "pretrained.registry": "ModelInfo list_models",
    "pretrained.source": "model_info",
    "results": "Frames Segments Tag",
    "stream": "Stream StreamWindow",
    "zero_shot": "classify_by_text",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
_SUBMODULES = ("clients", "export", "plots")  # public modules; all others are internal

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _SUBMODULES:
        return import_module(f"m2d_hub.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'm2d_hub' has no attribute {name!r}")
    return getattr(import_module(f"m2d_hub.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("m2d-hub")
    except PackageNotFoundError:  # for example in a program that PyInstaller packed
        return "0+unknown"
