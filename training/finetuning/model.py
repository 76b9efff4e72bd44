"""Fine-tuning of an audio model: an encoder and a head over clips of different lengths, stacked and masked.

Shapes: B clips, F mels, T frames, K windows, W frames of a window, N tokens of a window, N_F and N_T of them
along frequency and time, D width, C classes, H features of the head.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from m2d_hub.checks import require
from m2d_hub.hub import load_model
from m2d_hub.model import M2D
from m2d_hub.nn.encoder import take_tokens
from m2d_hub.windows import Windows

from ..data.annotations import AudioFile
from ..data.sampling import StepSampler
from ..evaluation.labelled import Fold, Subset
from ..evaluation.linear_fit import Examples, FitSettings, Standardiser, fit_linear
from ..runs.processes import autocast, random_lock
from .config import FinetuneConfig
from .data import FinetuneBatch, FinetuneDataset, augmented, clips_to_score
from .patchout import KeptTokens

logger = logging.getLogger(__name__)

LINEAR_RATE = 1e-3  # learning rate of the linear layer: converges on small lists, with early stopping


class AudioClassifier(nn.Module):
    """Encoder and head as in :meth:`m2d_hub.M2D.classify_waveform`, for masked and thinned batches.

    Attributes:
        backbone: The model that is trained, saved and evaluated.
    """

    def __init__(self, backbone: M2D, config: FinetuneConfig):
        """Wrap a model with its head."""
        super().__init__()
        self.backbone, self.config = backbone, config

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """Blocks of the transformer."""
        return self.backbone.encoder.blocks

    def train(self, mode: bool = True) -> AudioClassifier:
        super().train(mode)
        if not self.config.head_norm:
            self.backbone.required_head().norm.eval()
        return self

    def forward(self, log_mel: Tensor, num_frames: Tensor, kept: KeptTokens | None = None) -> Tensor:
        """Return logits (B, C).

        Args:
            log_mel: Normalised (B, F, T), zero beyond each clip's end.
            num_frames: Frames of each clip (B,).
            kept: Tokens of each window that structured patchout keeps; None: all.
        """
        encoder, head = self.backbone.encoder, self.backbone.required_head()
        layout = Windows.of(encoder.config).fitted(log_mel.shape[-1])
        log_mel, num_windows = layout.stack(log_mel)  # (B·K, F, W)
        tokens = encoder.embed(log_mel[:, None])  # (B·K, N, D)
        valid = layout.token_mask(num_frames, num_windows)  # (B, K, N_T)
        num_freq = encoder.config.grid[0]
        if kept is not None:
            tokens, mask = take_tokens(tokens, kept.ids), kept.mask
        else:
            mask = valid.flatten(0, 1)[:, None].expand(-1, num_freq, -1).flatten(1)  # (B·K, N)
        ids = None if kept is None else kept.ids
        encoded = encoder.encode(tokens, None if bool(mask.all()) else mask, ids)[:, 1:]
        encoded = rearrange(encoded * mask[..., None], "(b k) n d -> b k n d", k=num_windows)
        if head.config.features == "frames":
            total = rearrange(encoded, "b k (f t) d -> b (k t) (f d)", f=num_freq).sum(dim=1)
            count = valid.sum(dim=(1, 2))
        else:
            total = encoded.sum(dim=(1, 2))
            count = mask.unflatten(0, valid.shape[:2]).sum(dim=(1, 2))
        return head(total / count[:, None])

    def batches(self, subset: Subset, sampler: StepSampler, seed: int) -> Iterable[FinetuneBatch]:
        """Return the training batches of ``sampler``."""
        frontend, encoder = self.backbone.config.frontend, self.backbone.config.encoder
        return FinetuneDataset(subset, self.config, frontend, encoder, seed).batches(sampler)

    def inputs(self, batch: FinetuneBatch) -> tuple[tuple[Any, ...], Tensor]:
        """Return the arguments of :meth:`forward` for an augmented batch, and its targets (B, C)."""
        log_mel, targets = augmented(batch, self.backbone.frontend, self.config)
        return (log_mel, batch.num_frames, batch.kept), targets

    def logits(self, files: Sequence[AudioFile]) -> Iterator[Tensor]:
        """Yield logits (n, C) of whole clips on the CPU, as inference computes them."""
        head = self.backbone.required_head()
        for features in self._head_features(files):
            yield head(features.to(head.linear.weight)).float().cpu()

    def _head_features(self, files: Sequence[AudioFile]) -> Iterator[Tensor]:
        """Yield the head's input (n, H) of whole clips."""
        backbone = self.backbone
        for clips in clips_to_score(files, backbone, self.config):
            with autocast(backbone.device, self.config.precision):
                encoded = backbone.encode_clip(clips, batch_size=self.config.batch_size)
                features = backbone.required_head().clip_input(encoded)
            yield features

    def probabilities(self, logits: Tensor) -> Tensor:
        """Map logits (N, C) to probabilities."""
        return self.backbone.required_head().scores(logits)

    @torch.no_grad()
    def fit_head(self, fold: Fold, seed: int) -> None:
        """Set the head to the standardisation and the layer of linear evaluation."""
        self.eval()
        head = self.backbone.required_head()
        features = [
            torch.cat(list(self._head_features(subset.files))).float() for subset in (fold.train, fold.valid)
        ]
        standardise = Standardiser.of(features[0])
        train, valid = (
            Examples(standardise(values)[:, None], subset.targets)
            for values, subset in zip(features, (fold.train, fold.valid), strict=True)
        )
        settings = FitSettings(head.config.activation == "sigmoid", learning_rate=LINEAR_RATE)
        with torch.enable_grad():
            fit = fit_linear(train, valid, [seed], settings)
        head.norm.running_mean = standardise.mean.to(head.linear.weight)
        head.norm.running_var = standardise.var.to(head.linear.weight)
        head.linear.weight.copy_(fit.weight[0])
        head.linear.bias.copy_(fit.bias[0])

    def save(self, folder: Path) -> None:
        """Write the model for :func:`m2d_hub.load_model`."""
        self.backbone.save_pretrained(folder)


def build_audio_classifier(
    name: str, config: FinetuneConfig, labels: tuple[str, ...], is_multi_label: bool, seed: int
) -> AudioClassifier:
    """Load a model, fit its window, and give it a new head.

    With structured patchout the head takes the mean over all tokens, otherwise the mean over time frames
    (paper, section IV-B). ``seed`` draws the head's first weights.

    Raises:
        ConfigError: The model does not suit the settings.
    """
    model = load_model(name, device="cpu")
    encoder, channels = model.config.encoder, model.config.encoder.in_channels
    require(
        channels == 1,
        f"{name} is an image model ({channels} channels); fine-tune it with the preset 'imagenet'.",
    )
    require(
        config.frozen_blocks <= encoder.depth,
        f"frozen_blocks must be at most {encoder.depth}, the blocks of {name}, got {config.frozen_blocks}.",
    )
    if model.head is not None:
        classes = model.head.config.num_classes
        logger.info("The head of %s with %d classes is replaced by a new one.", name, classes)
    if model.clap is not None:  # training moves the encoder away from the space shared with texts
        model.clap, model.config = None, replace(model.config, clap=None)
    if model.config.own_length_windows:  # clips of a batch share windows, as in evaluation
        model.set_window(encoder.input_size[1] * model.config.frontend.hop_s)
    crop_frames = config.crop_frames or model.config.encoder.input_size[1]
    require(
        crop_frames >= encoder.patch_size[1],
        f"crop_frames must be at least {encoder.patch_size[1]}, one token of {name}, got {crop_frames}.",
    )
    if config.adjust_positions and config.crop_frames is not None:
        model.set_window(config.crop_frames * model.frame_hop_s / encoder.patch_size[1])
    with random_lock, torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        model.set_head(
            len(labels),
            features="tokens" if config.patchout_ratio else "frames",
            activation="sigmoid" if is_multi_label else "softmax",
            labels=labels,
        )
    generator = torch.Generator().manual_seed(seed)
    linear = model.required_head().linear
    if config.head_std is None:
        bound = linear.in_features**-0.5
        for tensor in (linear.weight, linear.bias):
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
    else:
        nn.init.trunc_normal_(linear.weight, std=config.head_std, generator=generator)
    _freeze(model, config)
    return AudioClassifier(model, config)


def _freeze(model: M2D, config: FinetuneConfig) -> None:
    """Exclude parts of the encoder from training."""
    encoder = model.encoder
    frozen: list[nn.Module] = [*encoder.blocks[: config.frozen_blocks]]
    if config.freeze_patch_embed or config.frozen_blocks:
        frozen.append(encoder.patch_embed)
    for module in frozen:
        module.requires_grad_(False)
    encoder.cls_token.requires_grad_(not config.frozen_blocks)
