"""Which frames form which window, how many tokens each gives, and when those tokens sound. Pure planning.

Windows stand one after another over a clip's spectrogram. The last one is zero-padded up to a whole patch; a
window that is not a whole number of patches loses its odd frames (1001 frames of 16 give 62 tokens).

Shapes: B clips, F mels, K windows, N_T tokens along time of a window, T of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m2d_hub.config import EncoderConfig

ENDLESS_TOKENS = 2**40  # of a window that ends where its clip does


@dataclass(frozen=True)
class Window:
    """Part of a clip that the encoder sees at once."""

    first_frame: int  # within the clip's spectrogram
    num_frames: int  # frames of the clip that it covers
    first_token: int  # within the clip's tokens along time
    num_tokens: int  # tokens along time, N_T


@dataclass(frozen=True)
class Windows:
    """How spectrograms are cut into windows, and windows into tokens along time."""

    window_frames: int | None  # of a window; None: one window of the clip's own length
    patch_frames: int  # of a token

    @classmethod
    def of(cls, config: EncoderConfig) -> Windows:
        """Those that an encoder's positions are for."""
        return cls(config.input_size[1], config.patch_size[1])

    @property
    def window_tokens(self) -> int:
        """Tokens along time of a whole window, N_T."""
        return self.length // self.patch_frames

    @property
    def length(self) -> int:
        """Frames of a whole window."""
        return ENDLESS_TOKENS * self.patch_frames if self.window_frames is None else self.window_frames

    def plan(self, num_frames: int) -> list[Window]:
        """Windows of a clip of ``num_frames`` frames, at least 1."""
        return [
            self.window(first, min(self.length, num_frames - first), index * self.window_tokens)
            for index, first in enumerate(range(0, num_frames, self.length))
        ]

    def window(self, first_frame: int, num_frames: int, first_token: int) -> Window:
        """One of ``num_frames`` frames, a whole one's at most, that begins there."""
        num_tokens = min(-(-num_frames // self.patch_frames), self.window_tokens)
        return Window(first_frame, num_frames, first_token, num_tokens)

    def count(self, num_frames: int) -> int:
        """Tokens along time of a clip, all its windows together, T."""
        last = self.plan(num_frames)[-1]
        return last.first_token + last.num_tokens

    def fitted(self, most_frames: int) -> Windows:
        """Windows of one length for clips of up to ``most_frames`` frames; short ones need no whole one."""
        whole_patches = -(-most_frames // self.patch_frames) * self.patch_frames
        return Windows(min(self.length, whole_patches), self.patch_frames)

    def heard(self, num_frames: Tensor, num_windows: int) -> Tensor:
        """Which tokens of ``num_windows`` windows of one length begin before their clips end.

        Args:
            num_frames: Of each clip (B,).
            num_windows: K, enough for the longest.

        Returns:
            (B, K, N_T) bool.
        """
        device = num_frames.device
        starts = torch.arange(num_windows, device=device)[:, None] * self.length
        starts = starts + torch.arange(self.window_tokens, device=device) * self.patch_frames
        return starts < num_frames[:, None, None]

    def stack(self, log_mel: Tensor) -> tuple[Tensor, int]:
        """Spectrograms (B, F, T) as windows of one length (B·K, F, W), the last zero-padded, and K."""
        num_windows = -(-log_mel.shape[-1] // self.length)
        padded = F.pad(log_mel, (0, num_windows * self.length - log_mel.shape[-1]))
        return padded.unflatten(-1, (num_windows, self.length)).transpose(1, 2).flatten(0, 1), num_windows

    def timestamps_s(self, num_tokens: int, hop_s: float) -> Tensor:
        """Centres of the tokens' frames in seconds, (T,) float64.

        Token i of a window that starts at frame w covers frames w + i·p … w + (i + 1)·p − 1, each ``hop_s``
        apart.
        """
        tokens = _count(num_tokens)
        starts = tokens // self.window_tokens * self.length
        first_frames = starts + tokens % self.window_tokens * self.patch_frames
        return (first_frames + (self.patch_frames - 1) / 2) * hop_s

    def window_timestamps_s(self, window: Window, hop_s: float) -> Tensor:
        """Centres of the frames of one window's tokens in seconds, (N_T,) float64."""
        first_frames = window.first_frame + _count(window.num_tokens) * self.patch_frames
        return (first_frames + (self.patch_frames - 1) / 2) * hop_s

    def cut(self, log_mel_blocks: Iterable[Tensor]) -> Iterator[tuple[Window, Tensor]]:
        """Forms windows from a stream of spectrogram blocks.

        It holds no more than one window and one block; a window of the clip's own length is the clip.

        Args:
            log_mel_blocks: Normalised blocks (..., F, t), in order.

        Yields:
            Each window with its frames (..., F, N_T · patch frames), zero-padded where the clip ends.
        """
        cutter = WindowCutter(self)
        for block in log_mel_blocks:
            yield from cutter.push(block)
        yield from cutter.finish()


def _count(num_tokens: int) -> Tensor:
    return torch.arange(num_tokens, dtype=torch.float64, device="cpu")


class WindowCutter:
    """Windows of one spectrogram that arrives block by block.

    They stand one after another, or overlap: with ``hop_frames``, each begins so many after the one before.
    """

    def __init__(self, windows: Windows, hop_frames: int | None = None):
        self._windows = windows
        self._hop_frames = windows.length if hop_frames is None else hop_frames
        self._pending: list[Tensor] = []
        self._pending_frames = self._first_frame = self._first_token = 0

    def push(self, log_mel: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """Windows that are whole now that frames (..., F, t) follow, as :meth:`Windows.cut` gives them."""
        self._pending.append(log_mel)
        self._pending_frames += log_mel.shape[-1]
        while self._pending_frames >= self._windows.length:
            yield self._take(self._windows.length)

    def finish(self) -> Iterator[tuple[Window, Tensor]]:
        """The window that the end of the clip cuts short, unless the one before has all of it."""
        seen = self._windows.length - self._hop_frames if self._first_frame else 0
        if self._pending_frames > seen:
            yield self._take(self._pending_frames)

    def _take(self, num_frames: int) -> tuple[Window, Tensor]:
        windows = self._windows
        joined = torch.cat(self._pending, dim=-1)
        window = windows.window(self._first_frame, num_frames, self._first_token)
        used_frames = window.num_tokens * windows.patch_frames
        kept = joined[..., : min(num_frames, used_frames)]
        passed = min(num_frames, self._hop_frames)
        self._pending, self._pending_frames = [joined[..., passed:]], self._pending_frames - passed
        self._first_frame += passed
        self._first_token += min(window.num_tokens, self._hop_frames // windows.patch_frames)
        return window, F.pad(kept, (0, used_frames - kept.shape[-1]))
