"""Which frames form which window, which samples they are computed from, how many tokens they give, and when.

Windows stand one after another over a clip's spectrogram. The last one is zero-padded up to a whole patch; a
window that is not a whole number of patches loses its odd frames (1001 frames of 16 give 62 tokens).

Shapes: B clips, F mels, K windows, N_T tokens along time of a window, T of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m2d_hub.config import EncoderConfig, FrontendConfig

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

    def used_frames(self, window: Window) -> int:
        """Frames of a window's tokens; where the clip ends before them, the rest is padding."""
        return window.num_tokens * self.patch_frames

    def cut(self, log_mel: Tensor) -> list[tuple[Window, Tensor]]:
        """Windows of spectrograms (..., F, T), each with the frames of its tokens, zero-padded at the end."""
        found = []
        for window in self.plan(log_mel.shape[-1]):
            used = self.used_frames(window)
            frames = log_mel[..., window.first_frame : window.first_frame + min(window.num_frames, used)]
            found.append((window, F.pad(frames, (0, used - frames.shape[-1]))))
        return found


def _count(num_tokens: int) -> Tensor:
    return torch.arange(num_tokens, dtype=torch.float64, device="cpu")


def reflected(waveform: Tensor, lengths: Tensor, num_frames: int, config: FrontendConfig) -> Tensor:
    """Waveforms as frames are computed from them: reflected at each clip's own ends, without a loop.

    Args:
        waveform: (B, S) float.
        lengths: Samples of each clip (B,); a clip too short to be reflected is zero-padded.
        num_frames: How many are wanted; frames of which no centre lies in the clip mean nothing.
        config: Of the frames.

    Returns:
        (B, span of the frames), for the frontend's ``log_mel_block``.
    """
    half = config.window_samples // 2
    last = (lengths - 1).clamp(min=half)[:, None]
    samples = torch.arange(config.span(num_frames), device=last.device)
    # Reflected at sample 0 and at the last one; what lies even further only fills whole windows.
    places = (last - (last - (samples - half).abs()).abs()).clamp(min=0)
    is_audio = places < lengths[:, None]
    return waveform.gather(1, torch.minimum(places, (lengths - 1)[:, None])) * is_audio


class WaveformCutter:
    """Windows of one waveform that arrives block by block, as samples: log-mel is left to who has a batch.

    They stand one after another, or overlap: with ``hop_frames``, each begins so many after the one before.
    It holds no more than one window and one block; a window of the clip's own length is the clip.
    """

    def __init__(self, frontend: FrontendConfig, windows: Windows, hop_frames: int | None = None):
        self._frontend, self._windows = frontend, windows
        self._hop_frames = windows.length if hop_frames is None else hop_frames
        self._pending: list[Tensor] = []  # from the next window's first frame on
        self._num_pending = self._first_frame = self._first_token = 0
        self._is_reflected = False  # at its start, as frames are centred on samples

    @property
    def _reach(self) -> int:
        """Samples on either side of its centre that a frame is computed from."""
        return self._frontend.window_samples // 2

    def push(self, block: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """The windows that samples (s,) complete, each with the samples of its tokens' frames.

        Yields:
            A window, and samples of which frame i of the window is computed from i·hop … i·hop + window − 1.
        """
        self._append(block)
        if not self._is_reflected and self._num_pending > self._reach:
            joined = self._join()
            self._replace(torch.cat([joined[1 : self._reach + 1].flip(0), joined]))
            self._is_reflected = True
        # Behind a window there stays as much as the waveform's end is reflected from.
        kept = self._hop_frames * self._frontend.hop_samples + self._reach + 1
        while self._is_reflected and self._num_pending >= max(
            kept, self._frontend.span(self._windows.length)
        ):
            yield self._take(self._windows.length)

    def finish(self) -> Iterator[tuple[Window, Tensor]]:
        """The windows that the end of the waveform completes or cuts short; of no samples there are none."""
        if not self._num_pending:
            return
        joined = self._join()
        if self._is_reflected:
            self._append(joined[-self._reach - 1 : -1].flip(0))
            left = self._frontend.num_whole_frames(self._num_pending)
        else:  # too short for that
            left = self._frontend.num_frames(len(joined))
            self._replace(reflected(joined[None], torch.tensor([len(joined)]), left, self._frontend)[0])
        while left >= self._windows.length:
            yield self._take(self._windows.length)
            left -= self._hop_frames
        # A window that overlaps the one before brings something new, or there is none.
        if left > (self._windows.length - self._hop_frames if self._first_frame else 0):
            yield self._take(left)

    def _take(self, num_frames: int) -> tuple[Window, Tensor]:
        frontend, windows, joined = self._frontend, self._windows, self._join()
        window = windows.window(self._first_frame, num_frames, self._first_token)
        used = windows.used_frames(window)
        samples = joined[: frontend.span(min(num_frames, used))]
        passed = min(num_frames, self._hop_frames)
        self._replace(joined[passed * frontend.hop_samples :])
        self._first_frame += passed
        self._first_token += min(window.num_tokens, self._hop_frames // windows.patch_frames)
        return window, F.pad(samples, (0, frontend.span(used) - len(samples)))

    def _join(self) -> Tensor:
        if len(self._pending) > 1:
            self._pending = [torch.cat(self._pending)]
        return self._pending[0]

    def _append(self, samples: Tensor) -> None:
        self._pending.append(samples)
        self._num_pending += len(samples)

    def _replace(self, samples: Tensor) -> None:
        self._pending, self._num_pending = [samples], len(samples)
