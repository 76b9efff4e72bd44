"""Window geometry: the frames, samples, tokens and timestamps of each window of a clip.

Windows follow each other without overlap. The last one is zero-padded to a multiple of the patch length. If
the window length is not a multiple of the patch length, the remaining frames are dropped (1001 frames make 62
tokens of 16 frames).

Shapes: B clips, F mels, K windows, N_T tokens along time of a window, T of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m2d_hub.config import EncoderConfig, FrontendConfig

UNBOUNDED_TOKENS = 2**40  # length of a window that is as long as its clip


@dataclass(frozen=True)
class Window:
    """Part of a clip that the encoder processes at once."""

    first_frame: int  # within the clip's spectrogram
    num_frames: int  # frames of the clip in the window
    first_token: int  # within the clip's tokens along time
    num_tokens: int  # tokens along time, N_T


@dataclass(frozen=True)
class Windows:
    """Division of spectrograms into windows, and of windows into tokens along time."""

    window_frames: int | None  # None: one window as long as the clip
    patch_frames: int  # frames of a token

    @classmethod
    def of(cls, config: EncoderConfig) -> Windows:
        """Return the windows that fit the positions of an encoder."""
        return cls(config.input_size[1], config.patch_size[1])

    @property
    def window_tokens(self) -> int:
        """Tokens along time of a full window, N_T."""
        return self.length // self.patch_frames

    @property
    def length(self) -> int:
        """Frames of a full window."""
        return UNBOUNDED_TOKENS * self.patch_frames if self.window_frames is None else self.window_frames

    def plan(self, num_frames: int) -> list[Window]:
        """Return the windows of a clip of ``num_frames`` frames, which must be at least 1."""
        return [
            self.window(first, min(self.length, num_frames - first), index * self.window_tokens)
            for index, first in enumerate(range(0, num_frames, self.length))
        ]

    def window(self, first_frame: int, num_frames: int, first_token: int) -> Window:
        """Return a window of ``num_frames`` frames, at most :attr:`length`, at the given position."""
        num_tokens = min(-(-num_frames // self.patch_frames), self.window_tokens)
        return Window(first_frame, num_frames, first_token, num_tokens)

    def count(self, num_frames: int) -> int:
        """Return the number of tokens along time of a clip, T."""
        last = self.plan(num_frames)[-1]
        return last.first_token + last.num_tokens

    def fitted(self, max_frames: int) -> Windows:
        """Return windows of one length for clips of up to ``max_frames`` frames, shortened if possible."""
        whole_patches = -(-max_frames // self.patch_frames) * self.patch_frames
        return Windows(min(self.length, whole_patches), self.patch_frames)

    def token_mask(self, num_frames: Tensor, num_windows: int) -> Tensor:
        """Return a mask of the tokens that start before the end of their clip.

        Args:
            num_frames: Number of frames of each clip (B,).
            num_windows: Number of windows K, enough for the longest clip.

        Returns:
            (B, K, N_T) bool.
        """
        device = num_frames.device
        starts = torch.arange(num_windows, device=device)[:, None] * self.length
        starts = starts + torch.arange(self.window_tokens, device=device) * self.patch_frames
        return starts < num_frames[:, None, None]

    def stack(self, log_mel: Tensor) -> tuple[Tensor, int]:
        """Split spectrograms (B, F, T) into zero-padded windows (B·K, F, W); return them and K."""
        num_windows = -(-log_mel.shape[-1] // self.length)
        padded = F.pad(log_mel, (0, num_windows * self.length - log_mel.shape[-1]))
        return padded.unflatten(-1, (num_windows, self.length)).transpose(1, 2).flatten(0, 1), num_windows

    def timestamps_s(self, num_tokens: int, hop_s: float) -> Tensor:
        """Return the centres of the tokens in seconds, (T,) float64.

        Token i of a window that starts at frame w covers frames w + i·p … w + (i + 1)·p − 1, which are
        ``hop_s`` apart.
        """
        tokens = _count(num_tokens)
        starts = tokens // self.window_tokens * self.length
        first_frames = starts + tokens % self.window_tokens * self.patch_frames
        return (first_frames + (self.patch_frames - 1) / 2) * hop_s

    def window_timestamps_s(self, window: Window, hop_s: float) -> Tensor:
        """Return the centres of the tokens of one window in seconds, (N_T,) float64."""
        first_frames = window.first_frame + _count(window.num_tokens) * self.patch_frames
        return (first_frames + (self.patch_frames - 1) / 2) * hop_s

    def token_frames(self, window: Window) -> int:
        """Return the number of frames that the tokens of a window cover, including padding."""
        return window.num_tokens * self.patch_frames

    def cut(self, log_mel: Tensor) -> list[tuple[Window, Tensor]]:
        """Split spectrograms (..., F, T) into windows, each zero-padded to the frames of its tokens."""
        windows = []
        for window in self.plan(log_mel.shape[-1]):
            length = self.token_frames(window)
            frames = log_mel[..., window.first_frame : window.first_frame + min(window.num_frames, length)]
            windows.append((window, F.pad(frames, (0, length - frames.shape[-1]))))
        return windows


def _count(num_tokens: int) -> Tensor:
    return torch.arange(num_tokens, dtype=torch.float64, device="cpu")


def reflected(waveform: Tensor, lengths: Tensor, num_frames: int, config: FrontendConfig) -> Tensor:
    """Pad each waveform of a batch by reflection at its own ends, without a loop.

    Args:
        waveform: (B, S) float.
        lengths: Number of samples of each clip (B,); very short clips are zero-padded.
        num_frames: Number of frames to pad for; frames centred after the end of a clip are invalid.
        config: Configuration of the frames.

    Returns:
        (B, span of the frames), the input of the frontend's ``log_mel_block``.
    """
    half = config.window_samples // 2
    last = (lengths - 1).clamp(min=half)[:, None]
    samples = torch.arange(config.span(num_frames), device=last.device)
    # Reflect at the first and the last sample; anything beyond only fills up windows.
    indices = (last - (last - (samples - half).abs()).abs()).clamp(min=0)
    is_audio = indices < lengths[:, None]
    return waveform.gather(1, torch.minimum(indices, (lengths - 1)[:, None])) * is_audio


class StreamFramer:
    """Split a waveform that arrives in blocks into the samples of consecutive windows.

    Windows overlap if ``hop_frames``, the distance between their first frames, is shorter than the window. At
    most one window and one block are held in memory; a window as long as the clip holds the whole clip.
    """

    def __init__(self, frontend: FrontendConfig, windows: Windows, hop_frames: int | None = None):
        self._frontend, self._windows = frontend, windows
        self._hop_frames = windows.length if hop_frames is None else hop_frames
        self._pending: list[Tensor] = []  # samples from the first frame of the next window
        self._num_pending = self._first_frame = self._first_token = 0
        self._is_reflected = False  # whether the start is padded, since frames are centred on samples

    @property
    def _reach(self) -> int:
        """Samples of a frame on either side of its centre."""
        return self._frontend.window_samples // 2

    def push(self, block: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """Add samples (s,) and yield the windows that are now complete.

        Yields:
            A window and its samples; frame i is computed from samples i·hop … i·hop + window − 1.
        """
        self._append(block)
        if not self._is_reflected and self._num_pending > self._reach:
            joined = self._join()
            self._replace(torch.cat([joined[1 : self._reach + 1].flip(0), joined]))
            self._is_reflected = True
        # Keep enough samples after a window to reflect the end of the waveform.
        kept = self._hop_frames * self._frontend.hop_samples + self._reach + 1
        while self._is_reflected and self._num_pending >= max(
            kept, self._frontend.span(self._windows.length)
        ):
            yield self._take(self._windows.length)

    def finish(self) -> Iterator[tuple[Window, Tensor]]:
        """End the waveform and yield the remaining windows; an empty waveform has none."""
        if not self._num_pending:
            return
        joined = self._join()
        if self._is_reflected:
            self._append(joined[-self._reach - 1 : -1].flip(0))
            left = self._frontend.num_complete_frames(self._num_pending)
        else:  # too short for reflection
            left = self._frontend.num_frames(len(joined))
            self._replace(reflected(joined[None], torch.tensor([len(joined)]), left, self._frontend)[0])
        while left >= self._windows.length:
            yield self._take(self._windows.length)
            left -= self._hop_frames
        # An overlapping last window is only needed if it has frames that the window before it lacks.
        if left > (self._windows.length - self._hop_frames if self._first_frame else 0):
            yield self._take(left)

    def _take(self, num_frames: int) -> tuple[Window, Tensor]:
        frontend, windows, joined = self._frontend, self._windows, self._join()
        window = windows.window(self._first_frame, num_frames, self._first_token)
        token_frames = windows.token_frames(window)
        samples = joined[: frontend.span(min(num_frames, token_frames))]
        passed = min(num_frames, self._hop_frames)
        self._replace(joined[passed * frontend.hop_samples :])
        self._first_frame += passed
        self._first_token += min(window.num_tokens, self._hop_frames // windows.patch_frames)
        return window, F.pad(samples, (0, frontend.span(token_frames) - len(samples)))

    def _join(self) -> Tensor:
        if len(self._pending) > 1:
            self._pending = [torch.cat(self._pending)]
        return self._pending[0]

    def _append(self, samples: Tensor) -> None:
        self._pending.append(samples)
        self._num_pending += len(samples)

    def _replace(self, samples: Tensor) -> None:
        self._pending, self._num_pending = [samples], len(samples)
