"""The model of a fine-tuning: an encoder and a head over clips of different lengths, stacked and masked.

Shapes: B clips, F mels, T frames, K windows, W frames of a window, N tokens of a window, N_F and N_T of them
along frequency and time, D width, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from einops import rearrange
from torch import Tensor, nn

from m2d_hub.checks import require
from m2d_hub.hub import load_model
from m2d_hub.model import M2D
from m2d_hub.nn.encoder import take_tokens
from m2d_hub.nn.patchout import KeptTokens
from m2d_hub.windows import Windows

from .config import FinetuneConfig

logger = logging.getLogger(__name__)


class FinetuneModel(nn.Module):
    """Encoder and head as :meth:`m2d_hub.M2D.classify_waveform` joins them, for masked and thinned batches.

    Attributes:
        backbone: The model; what is trained, saved and evaluated.
    """

    def __init__(self, backbone: M2D, learns_norm: bool = True):
        """Wraps a model.

        Args:
            backbone: With its head.
            learns_norm: Whether the head normalises over the batch in training, or not at all.
        """
        super().__init__()
        self.backbone, self.learns_norm = backbone, learns_norm

    def train(self, mode: bool = True) -> FinetuneModel:
        super().train(mode)
        if not self.learns_norm:
            self.backbone.required_head().norm.eval()
        return self

    def forward(self, log_mel: Tensor, num_frames: Tensor, kept: KeptTokens | None = None) -> Tensor:
        """Logits (B, C).

        Args:
            log_mel: Normalised (B, F, T), zero beyond each clip's end.
            num_frames: Frames of each clip (B,).
            kept: Tokens that structured patchout leaves, of each window; None: all.
        """
        encoder, head = self.backbone.encoder, self.backbone.required_head()
        layout = Windows.of(encoder.config).fitted(log_mel.shape[-1])
        log_mel, num_windows = layout.stack(log_mel)  # (B·K, F, W)
        tokens = encoder.embed(log_mel[:, None])  # (B·K, N, D)
        heard = layout.token_mask(num_frames, num_windows)  # (B, K, N_T)
        num_freq = encoder.config.grid[0]
        if kept is not None:
            tokens, mask = take_tokens(tokens, kept.ids), kept.mask
        else:
            mask = heard.flatten(0, 1)[:, None].expand(-1, num_freq, -1).flatten(1)  # (B·K, N)
        encoded = encoder.encode(tokens, None if bool(mask.all()) else mask)[:, 1:]
        encoded = rearrange(encoded * mask[..., None], "(b k) n d -> b k n d", k=num_windows)
        if head.config.features == "frames":
            total = rearrange(encoded, "b k (f t) d -> b (k t) (f d)", f=num_freq).sum(dim=1)
            count = heard.sum(dim=(1, 2))
        else:
            total = encoded.sum(dim=(1, 2))
            count = mask.unflatten(0, heard.shape[:2]).sum(dim=(1, 2))
        return head(total / count[:, None])


def build_model(name: str, config: FinetuneConfig, labels: tuple[str, ...], is_multi_label: bool) -> M2D:
    """Loads a model, fits its window, and puts a fresh head on it, drawn from torch's global generator.

    With structured patchout the head takes the mean over all tokens, otherwise the mean over time frames
    (paper, section IV-B).

    Args:
        name: As for :func:`m2d_hub.load_model`.
        config: The run.
        labels: Names of the classes.
        is_multi_label: Whether scores are sigmoids rather than a softmax.

    Raises:
        ConfigError: The model does not go with the settings.
    """
    model = load_model(name, device="cpu")
    channels = model.config.encoder.in_channels
    require(
        channels == 1, f"{name} is a model of pictures ({channels} channels): fine-tune it by 'imagenet'."
    )
    if model.head is not None:
        logger.info(
            "The head of %s, %d classes, gives way to a new one.", name, model.head.config.num_classes
        )
    if model.clap is not None:  # a trained encoder leaves the space that it shared with texts
        model.clap, model.config = None, replace(model.config, clap=None)
    if (
        model.config.own_length_windows
    ):  # clips of a batch share windows, and are evaluated as they are trained
        model.set_window(model.config.encoder.input_size[1] * model.config.frontend.hop_s)
    _check_crop(name, config, *model.config.encoder.input_size[1:], model.config.encoder.patch_size[1])
    if config.adjust_positions and config.crop_frames is not None:
        model.set_window(config.crop_frames * model.frame_hop_s / model.config.encoder.patch_size[1])
    depth = model.config.encoder.depth
    require(
        config.frozen_blocks <= depth,
        f"frozen_blocks must be at most {depth}, the blocks of {name}, got {config.frozen_blocks}.",
    )
    model.set_head(
        len(labels),
        features="tokens" if config.patchout_ratio else "frames",
        activation="sigmoid" if is_multi_label else "softmax",
        labels=labels,
    )
    nn.init.trunc_normal_(model.required_head().linear.weight, std=config.head_std)
    _freeze(model, config)
    return model


def _check_crop(name: str, config: FinetuneConfig, window_frames: int, patch_frames: int) -> None:
    crop_frames = config.crop_frames or window_frames
    require(
        crop_frames >= patch_frames,
        f"crop_frames must be at least {patch_frames}, one token of {name}, got {crop_frames}.",
    )
    if config.adjust_positions and crop_frames > 2 * window_frames:
        logger.warning(
            "Positions of %s are stretched from %d to %d frames. Interpolation is for lengths close to those "
            "of pre-training: adjust_positions=false encodes long clips window by window.",
            name,
            window_frames,
            crop_frames,
        )


def _freeze(model: M2D, config: FinetuneConfig) -> None:
    """Takes parts out of the training."""
    encoder = model.encoder
    fixed: list[nn.Module] = [*encoder.blocks[: config.frozen_blocks]]
    if config.freeze_patch_embed or config.frozen_blocks:
        fixed.append(encoder.patch_embed)
    for module in fixed:
        module.requires_grad_(False)
    encoder.cls_token.requires_grad_(not config.frozen_blocks)
