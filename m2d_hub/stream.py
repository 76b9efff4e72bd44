"""Encoding of audio that arrives in blocks, in constant memory.

>>> stream = model.stream(sample_rate=44_100)
>>> for block in blocks:  # waveforms (s,) of any lengths
...     frames = stream.push(block)  # (1, T, N_F·D); T is 0 until a window is complete
>>> frames = stream.finish()
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2d_hub.audio.inputs import check_rate, checked, to_waveform
from m2d_hub.audio.resample import Resampler
from m2d_hub.checks import Numbers
from m2d_hub.detect import SILENCE_DBFS
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.inference import ClipWindow, encode_batched
from m2d_hub.nn.encoder import Encoder
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.results import Frames, Tag
from m2d_hub.windows import StreamFramer, Window, Windows

_MAX_BATCH = 16  # windows encoded at once if a long block is pushed


@dataclass(frozen=True)
class StreamWindow:
    """An encoded window of a stream."""

    start_s: float  # since the first sample of the stream
    end_s: float
    embedding: Tensor  # (N_F·D,), the mean of its frames, as encode_clip returns for a clip
    level_dbfs: float  # RMS level in dB relative to full scale


class Stream:
    """A waveform that arrives block by block; create it with :meth:`m2d_hub.M2D.stream`.

    The concatenated results of :meth:`push` and :meth:`finish` equal :meth:`m2d_hub.M2D.encode_frames` of the
    whole waveform. If the hop is shorter than the window, windows overlap, and each returns the frames that
    the windows before it did not cover; results come sooner at a higher cost.

    Attributes:
        hop_s: Seconds between the starts of consecutive windows.
        windows: Windows completed by the last call of :meth:`push` or :meth:`finish`.
    """

    def __init__(
        self,
        frontend: LogMelFrontend,
        encoder: Encoder,
        windows: Windows,
        *,
        classify: Callable[..., list[list[Tag]]],
        sample_rate: int | None = None,
        hop_s: float | None = None,
    ):
        """Create a stream; arguments as for :meth:`m2d_hub.M2D.stream`."""
        config = frontend.config
        rate = config.sample_rate if sample_rate is None else check_rate(sample_rate, "sample_rate")
        hop_frames = _hop_frames(windows, hop_s, config.hop_s)
        self.hop_s = hop_frames * config.hop_s
        self.windows: list[StreamWindow] = []
        self._frontend, self._encoder, self._geometry, self._classify = frontend, encoder, windows, classify
        self._resampler = Resampler(rate, config.sample_rate)
        self._framer = StreamFramer(config, windows, hop_frames)
        self._covered_frames = 0  # spectrogram frames for which tokens were returned
        self._num_samples = 0
        self._is_finished = False

    @torch.no_grad()
    def push(self, block: Any) -> Frames:
        """Add the next samples.

        Args:
            block: An array, tensor or list of numbers (s,) at the stream's sample rate; integers are scaled
                to [-1, 1).

        Returns:
            The frames that are now complete (1, T, N_F·D), on the CPU, with their times in the stream. T may
            be 0.

        Raises:
            AudioError: The block is not a waveform or contains non-finite samples. It is skipped, and the
                stream can continue.
            ConfigError: The stream is finished.
        """
        self._require_open()
        waveform = to_waveform(block, "The block")
        if waveform.ndim != 1:
            raise AudioError(
                f"The block has shape {tuple(waveform.shape)}, but a stream takes one channel (samples,); "
                "average the channels first, for example block.mean(axis=1)."
            )
        (waveform,) = checked(iter([waveform]), f"The block at sample {self._num_samples} of the stream")
        self._num_samples += len(waveform)
        return self._encode(self._framer.push(self._resampler.push(waveform)))

    @torch.no_grad()
    def finish(self) -> Frames:
        """End the stream and return the remaining frames.

        Raises:
            AudioError: The stream is empty.
            ConfigError: The stream is already finished.
        """
        self._require_open()
        self._is_finished = True
        if not self._num_samples:
            raise AudioError("The stream is empty; push samples before finish().")
        rest = self._framer.push(self._resampler.finish())
        return self._encode(itertools.chain(rest, self._framer.finish()))

    def classify(self, top_k: int = 5, silence_dbfs: float = SILENCE_DBFS) -> list[list[Tag]]:
        """Return the ``top_k`` classes of each of :attr:`windows`, best first.

        Windows with a level below ``silence_dbfs`` have no tags.

        Raises:
            ConfigError: The model has no head, or ``top_k`` is less than 1.
        """
        clips = [window.embedding for window in self.windows]
        frame_dim = self._encoder.config.frame_dim
        found = self._classify(torch.stack(clips) if clips else torch.zeros(0, frame_dim), top_k=top_k)
        return [
            tags if window.level_dbfs >= silence_dbfs else []
            for window, tags in zip(self.windows, found, strict=True)
        ]

    def _require_open(self) -> None:
        if self._is_finished:
            raise ConfigError("The stream is finished; call model.stream() for a new one.")

    def _encode(self, framed: Iterator[tuple[Window, Tensor]]) -> Frames:
        """Encode windows, store them in :attr:`windows`, and return their new frames."""
        hop_s, geometry = self._frontend.config.hop_s, self._geometry
        windows = (ClipWindow(0, window, samples) for window, samples in framed)
        device = self._encoder.cls_token.device
        batches = encode_batched(windows, self._frontend, self._encoder.frames, _MAX_BATCH, device)
        encoded = [
            (item, features)
            for batch in batches
            for item, features in zip(batch.windows, batch.features.to("cpu", torch.float32), strict=True)
        ]
        encoded.sort(key=lambda pair: pair[0].window.first_frame)
        self.windows = []
        new_features = [torch.zeros(0, self._encoder.config.frame_dim)]
        new_times = [torch.zeros(0, dtype=torch.float64)]
        for item, features in encoded:
            window = item.window
            start_s, length_s = window.first_frame * hop_s, window.num_frames * hop_s
            end_s = start_s + length_s
            level_dbfs = item.level_dbfs(self._frontend)
            self.windows.append(StreamWindow(start_s, end_s, features.mean(dim=0), level_dbfs))
            covered = max(0, self._covered_frames - window.first_frame) // geometry.patch_frames
            new_features.append(features[covered:])
            new_times.append(geometry.window_timestamps_s(window, hop_s)[covered:])
            self._covered_frames = window.first_frame + window.num_tokens * geometry.patch_frames
        features = torch.cat(new_features)[None]
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        return Frames(features, mask, torch.cat(new_times))


def _hop_frames(windows: Windows, hop_s: float | None, frame_hop_s: float) -> int:
    """Return the frames from one window to the next, a whole number of tokens if windows overlap."""
    window = windows.window_frames
    if window is None:
        raise ConfigError(
            "A stream needs a model with a fixed window; set one with load_model(..., window_s=SECONDS) or "
            "model.set_window(SECONDS)."
        )
    if hop_s is None:
        return window
    frames = round(hop_s / frame_hop_s) if hop_s in Numbers() else 0
    if not 0 < frames <= window:
        raise ConfigError(
            f"hop_s must be a positive number of seconds, at most the window of {window * frame_hop_s:g} "
            f"seconds, got {hop_s!r}."
        )
    patch = windows.patch_frames
    return window if frames == window else patch * min(windows.window_tokens, max(1, round(frames / patch)))
