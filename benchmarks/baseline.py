"""Plain runtime for comparison: a timm ViT-Base and nnAudio, one file at a time.

It computes the published features in the simplest way: the spectrogram of the whole file, then one window
after another. It needs timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import timm
import torch
from einops import rearrange
from nnAudio.features import MelSpectrogram
from torch import Tensor, nn

WINDOW_FRAMES, PATCH, GRID_FREQ = 608, 16, 5


class Baseline(nn.Module):
    """M2D ViT-Base encoder from tensors in the published layout."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.vit = timm.models.vision_transformer.VisionTransformer(
            img_size=(80, WINDOW_FRAMES),
            patch_size=PATCH,
            in_chans=1,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.vit.load_state_dict({name: tensors[name] for name in self.vit.state_dict()})
        self.mel = MelSpectrogram(
            sr=16_000,
            n_fft=400,
            win_length=400,
            hop_length=160,
            n_mels=80,
            fmin=50,
            fmax=8_000,
            verbose=False,
        )
        self.mean, self.std = tensors["norm_stats"].tolist()
        self.eval()

    @torch.inference_mode()
    def forward(self, waveform: Tensor) -> Tensor:
        """Return frames (B, T, 3840) of a waveform (B, S) at 16 kHz."""
        log_mel = (self.mel(waveform) + torch.finfo(torch.float32).eps).log()[:, None]
        log_mel = (log_mel - self.mean) / self.std
        num_frames = log_mel.shape[-1]
        log_mel = nn.functional.pad(log_mel, (0, -(num_frames % WINDOW_FRAMES) % PATCH))
        windows = log_mel[..., : num_frames + PATCH].split(WINDOW_FRAMES, dim=-1)
        return torch.cat([self._encode(window) for window in windows], dim=1)

    def _encode(self, log_mel: Tensor) -> Tensor:
        tokens = self.vit.patch_embed.proj(log_mel).flatten(2).transpose(1, 2)
        positions = rearrange(self.vit.pos_embed[:, 1:], "1 (f t) d -> 1 f t d", f=GRID_FREQ)
        tokens = tokens + positions[:, :, : tokens.shape[1] // GRID_FREQ].flatten(1, 2)
        class_token = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = self.vit.norm(self.vit.blocks(torch.cat([class_token, tokens], dim=1)))
        return rearrange(tokens[:, 1:], "b (f t) d -> b t (f d)", f=GRID_FREQ)
