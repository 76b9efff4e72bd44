"""Frozen offline encoders: a speech model's layer, an M2D model, or a text encoder.

Shapes: B batch, S samples, N_T time frames of tokens, K features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.errors import CheckpointError, ConfigError, DownloadError
from m2d_hub.io import importing, reading_file
from m2d_hub.model import M2D
from m2d_hub.nn.text_encoder import TextEncoder

from ..data.stored_features import pool_to_tokens
from .config import PretrainConfig

HUBERT_NAMES = {"hubert-base-l9": ("facebook/hubert-base-ls960", 9)}
VARIANCE_EPSILON = 1e-7  # of waveforms; transformers' Wav2Vec2FeatureExtractor has it
HUBERT_LAYER = 9  # of a HuBERT model given by folder or repository (paper, section IV-D)


@dataclass
class HubertTeacher:
    """One layer of a HuBERT model, averaged over each token's frames (paper, section IV-D)."""

    model: Any
    layer: int
    num_tokens: int
    patch_frames: int
    context_samples: int  # before the first frame's centre
    crop_samples: int  # that the tokens span

    @property
    def dim(self) -> int:
        """Width of the layer."""
        return int(self.model.config.hidden_size)

    def features(self, waveform: Tensor) -> Tensor:
        """Map waveform (B, S) at 16 kHz to features (B, frames of 20 ms, K).

        Each waveform is standardised to zero mean and unit variance, as by HuBERT's processor.
        """
        variance, mean = torch.var_mean(waveform, dim=-1, correction=0, keepdim=True)
        waveform = (waveform - mean) / (variance + VARIANCE_EPSILON).sqrt()
        states = self.model(waveform, output_hidden_states=True).hidden_states
        features: Tensor = states[self.layer].float()
        return features

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Map clean crops (B, S), with the context of the first and last frame, to features (B, N_T, K)."""
        stop = self.context_samples + self.crop_samples
        features = self.features(waveform[:, self.context_samples : stop])
        return pool_to_tokens(features, self.num_tokens, self.patch_frames)


@dataclass
class M2DTeacher:
    """A pre-trained M2D model, which keeps a further pre-trained one near (paper, section IV-E)."""

    model: M2D
    num_tokens: int

    @property
    def dim(self) -> int:
        """N_F·D."""
        return self.model.config.encoder.frame_dim

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Map clean crops (B, S), with the context of the first and last frame, to features (B, N_T, K)."""
        return self.encode_log_mel(self.model.frontend.log_mel_block(waveform))

    @torch.no_grad()
    def encode_log_mel(self, log_mel: Tensor) -> Tensor:
        """Map log-mel spectrograms (B, F, T), not normalised, to features (B, N_T, K)."""
        standardised = self.model.frontend.normalise(log_mel)[:, None]
        frames = self.model.encoder.frames(standardised).float()
        if frames.shape[1] != self.num_tokens:
            raise ConfigError(
                f"the teacher returns {frames.shape[1]} time frames of a crop, this run {self.num_tokens}: "
                "their patches must span as many frames."
            )
        return frames


@dataclass
class TextTeacher:
    """A text encoder that turns captions into features (M2D-CLAP)."""

    encoder: TextEncoder
    source: str  # repository or folder that it came from
    device: torch.device

    @property
    def model(self) -> Any:
        """The text encoder's network."""
        return self.encoder.model

    @property
    def dim(self) -> int:
        """Features of one caption."""
        return self.encode_captions([""]).shape[1]

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Features (B, K) of captions."""
        return self.encoder.encode(captions, self.device)


Teacher = HubertTeacher | M2DTeacher


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the weights of a teacher, independent of their names and location."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_teacher(name: str, config: PretrainConfig, device: torch.device) -> Teacher:
    """Load a frozen teacher of per-frame features.

    Args:
        name: ``hubert-base-l9``; a folder that transformers' HubertModel loads; or a name that
            :func:`m2d_hub.load_model` takes.
        config: The run.
        device: Device of the teacher.
    """
    if name in HUBERT_NAMES or _is_hubert_folder(Path(name)):
        return load_hubert_teacher(name, config, device)
    from m2d_hub import load_model

    return M2DTeacher(load_model(name, device=device).requires_grad_(False), config.grid[1])


def load_hubert_teacher(name: str, config: PretrainConfig, device: torch.device) -> HubertTeacher:
    """Load HuBERT's ninth layer, or the last one of a smaller model, by folder or repository.

    Raises:
        ConfigError: The run is not at 16 kHz, or transformers is not installed.
        DownloadError: The model is neither on disk nor can it be fetched.
    """
    frontend = config.frontend
    if frontend.sample_rate != 16_000:
        raise ConfigError(f"HuBERT expects 16,000 Hz, but this run has sample_rate {frontend.sample_rate}.")
    source, layer = HUBERT_NAMES.get(name, (name, HUBERT_LAYER))
    with importing("transformers", "a HuBERT teacher", "clap"):
        from transformers import HubertModel
    try:
        model: Any = HubertModel.from_pretrained(source).eval().requires_grad_(False)
    except OSError as error:
        raise DownloadError(f"the HuBERT model {source!r} could not be loaded: {error}") from error
    return HubertTeacher(
        model.to(device),
        min(layer, model.config.num_hidden_layers),
        num_tokens=config.grid[1],
        patch_frames=config.patch_size[1],
        context_samples=frontend.window_samples // 2,
        crop_samples=config.input_size[1] * frontend.hop_samples,
    )


def _is_hubert_folder(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.is_file():
        return False
    with reading_file(config, "a model configuration", "Fetch or save it again.", CheckpointError):
        return '"hubert"' in config.read_text(encoding="utf-8")
