"""Audio that is still arriving: frames and tags as soon as a window of it is whole, in constant memory.

>>> stream = model.stream(sample_rate=44_100)
>>> for block in blocks:  # waveforms (s,) of any lengths
...     frames = stream.push(block)  # (1, T, N_F·D), of T = 0 frames while no window is whole
>>> frames = stream.finish()
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2d_hub.audio.decoding import BLOCK_VALUES
from m2d_hub.audio.resample import Resampler, check_rate
from m2d_hub.audio.waveforms import checked, to_waveform
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.inference import ClipWindow, encode_batched
from m2d_hub.results import Frames, Tag
from m2d_hub.windows import WaveformCutter, Window

if TYPE_CHECKING:
    from m2d_hub.model import M2D

_MOST_WINDOWS = 16  # encoded at once, where a long block is pushed
_NAME = "the stream"


@dataclass(frozen=True)
class StreamWindow:
    """A window of a stream, encoded."""

    start_s: float  # since the stream's first sample
    end_s: float
    embedding: Tensor  # (N_F·D,), the mean of its frames, as encode_clip gives for a clip


class Stream:
    """One waveform that arrives block by block; :meth:`m2d_hub.M2D.stream` begins it.

    What all calls of :meth:`push` and :meth:`finish` return, put together, is what
    :meth:`m2d_hub.M2D.encode_frames` gives for the whole. With a hop shorter than the window, windows
    overlap, and each gives the frames that the one before has not: more work, answers sooner.

    Attributes:
        hop_s: Seconds from one window's beginning to the next one's.
        windows: Those that the last call of :meth:`push` or :meth:`finish` completed.
    """

    def __init__(self, model: M2D, sample_rate: int | None = None, hop_s: float | None = None):
        """As :meth:`m2d_hub.M2D.stream`."""
        rate = model.sample_rate if sample_rate is None else check_rate(sample_rate, "sample_rate")
        hop_frames = _hop_frames(model, hop_s)
        self.hop_s = hop_frames * model.config.frontend.hop_s
        self.windows: list[StreamWindow] = []
        self._model = model
        self._resampler = Resampler(rate, model.sample_rate)
        self._cutter = WaveformCutter(model.config.frontend, model.windows, hop_frames)
        self._heard_frames = 0  # of the spectrogram: those that tokens were given for
        self._num_samples = 0
        self._is_finished = False

    @torch.no_grad()
    def push(self, block: Any) -> Frames:
        """Takes the next samples.

        Args:
            block: An array, tensor or list of numbers (s,) at the stream's rate; integers are scaled to
                [-1, 1).

        Returns:
            The frames that are complete now (1, T, N_F·D) on the CPU, with their times in the stream; T may
            be 0.

        Raises:
            AudioError: The block is no waveform, or holds samples that are non-finite; it is left out, and
                the stream may go on.
            ConfigError: The stream was finished.
        """
        self._require_open()
        waveform = to_waveform(block, "the block")
        if waveform.ndim != 1:
            raise AudioError(
                f"the block has shape {tuple(waveform.shape)}; a stream takes waveforms (samples,) of one "
                "channel: average several first, x.mean(axis=1)."
            )
        (waveform,) = checked(iter([waveform]), f"the block at sample {self._num_samples} of {_NAME}")
        self._num_samples += len(waveform)
        return self._answer(self._cut(self._resampler.push(waveform)))

    @torch.no_grad()
    def finish(self) -> Frames:
        """Ends the stream: the frames that are left, of what does not fill a window.

        Raises:
            AudioError: The stream is empty.
            ConfigError: It was finished before.
        """
        self._require_open()
        self._is_finished = True
        if not self._num_samples:
            raise AudioError(f"{_NAME} is empty: it holds no samples.")
        return self._answer(self._rest())

    def classify(self, top_k: int = 5) -> list[list[Tag]]:
        """The ``top_k`` classes of each of :attr:`windows`, the best first.

        Raises:
            ConfigError: The model has no head, or ``top_k`` is less than 1.
        """
        clips = [window.embedding for window in self.windows]
        return self._model.classify_embeddings(
            torch.stack(clips) if clips else torch.zeros(0, self._model.frame_dim), top_k=top_k
        )

    def _require_open(self) -> None:
        if self._is_finished:
            raise ConfigError(f"{_NAME} was finished: model.stream() begins another.")

    def _cut(self, waveform: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """The windows that samples at the model's rate complete."""
        for block in waveform.split(BLOCK_VALUES):
            yield from self._cutter.push(block)

    def _rest(self) -> Iterator[tuple[Window, Tensor]]:
        """The windows that the end of the stream completes, or cuts short."""
        yield from self._cut(self._resampler.finish())
        yield from self._cutter.finish()

    def _answer(self, cut: Iterator[tuple[Window, Tensor]]) -> Frames:
        """Encodes windows, keeps what they are in sum, and gives their frames that are new."""
        model = self._model
        hop_s, geometry = model.config.frontend.hop_s, model.windows
        windows = (ClipWindow(0, window, samples) for window, samples in cut)
        batches = encode_batched(windows, model.frontend, model.encoder.frames, _MOST_WINDOWS, model.device)
        encoded = [
            (item.window, features)
            for batch in batches
            for item, features in zip(batch.windows, batch.features.to("cpu", torch.float32), strict=True)
        ]
        encoded.sort(key=lambda pair: pair[0].first_frame)
        self.windows = []
        new_features, new_times = (
            [torch.zeros(0, self._model.frame_dim)],
            [torch.zeros(0, dtype=torch.float64)],
        )
        for window, features in encoded:
            begin_s, length_s = window.first_frame * hop_s, window.num_frames * hop_s
            self.windows.append(StreamWindow(begin_s, begin_s + length_s, features.mean(dim=0)))
            known = max(0, self._heard_frames - window.first_frame) // geometry.patch_frames
            new_features.append(features[known:])
            new_times.append(geometry.window_timestamps_s(window, hop_s)[known:])
            self._heard_frames = window.first_frame + window.num_tokens * geometry.patch_frames
        features = torch.cat(new_features)[None]
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        return Frames(features, mask, torch.cat(new_times))


def _hop_frames(model: M2D, hop_s: float | None) -> int:
    """Frames from one window to the next: a whole number of tokens where windows overlap."""
    window, tokens = model.windows.window_frames, model.windows.window_tokens
    if window is None:
        raise ConfigError(
            "a stream needs a model of fixed windows; this one takes each clip as a whole. Give a length in "
            "seconds by load_model(..., window_s=...) or model.set_window(...)."
        )
    if hop_s is None:
        return window
    is_number = isinstance(hop_s, (int, float)) and not isinstance(hop_s, bool)
    frames = round(hop_s / model.config.frontend.hop_s) if is_number and math.isfinite(hop_s) else 0
    if not 0 < frames <= window:
        raise ConfigError(
            f"hop_s must be a number of seconds above 0 and at most the window's {model.window_s:g}, got "
            f"{hop_s!r}."
        )
    patch = model.windows.patch_frames
    return window if frames == window else patch * min(tokens, max(1, round(frames / patch)))
