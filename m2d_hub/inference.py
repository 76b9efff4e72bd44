"""Encode the windows of many clips in batches, and put the results back in order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.audio.clips import AudioClip
from m2d_hub.audio.inputs import scaled
from m2d_hub.checks import Numbers, require
from m2d_hub.errors import AudioError
from m2d_hub.nn.encoder import Encoder, mask_of_tokens
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.windows import StreamFramer, Window, Windows, reflected

NO_CLIPS = "There are no clips to encode; give at least one."


@dataclass(frozen=True)
class ClipWindow:
    """One window of one clip."""

    clip: int  # index of the clip in the call
    window: Window
    samples: Tensor  # (s,) from which the frames of its tokens are computed, zero-padded

    def level_dbfs(self, frontend: LogMelFrontend) -> float:
        """Return the RMS level in dB relative to full scale; minus infinity for digital silence."""
        margin = frontend.config.window_samples // 2  # of the windows before and after
        inner = self.samples[margin:-margin] if len(self.samples) > 2 * margin else self.samples
        mean_square = float(inner.square().mean())
        return 10 * math.log10(mean_square) if mean_square else -math.inf


@dataclass(frozen=True)
class EncodedBatch:
    """Windows encoded together, zero after the end of shorter ones."""

    windows: list[ClipWindow]
    features: Tensor  # (..., B, N_T, N_F·D)


def read_windows(
    clips: Iterable[AudioClip], frontend: LogMelFrontend, windows: Windows
) -> Iterator[ClipWindow]:
    """Read clip after clip in blocks and split each into windows."""
    for index, clip in enumerate(clips):
        framer = StreamFramer(frontend.config, windows)
        for block in clip.blocks():
            for window, samples in framer.push(block):
                yield ClipWindow(index, window, samples)
        for window, samples in framer.finish():
            yield ClipWindow(index, window, samples)


def split_windows(
    waveform: Tensor, lengths: list[int], frontend: LogMelFrontend, windows: Windows
) -> list[ClipWindow]:
    """Split a batch of waveforms (B, S) into windows; samples after a clip's length are ignored."""
    config = frontend.config
    plans = [windows.plan(config.num_frames(length)) for length in lengths]
    max_frames = max(plan[-1].first_frame + windows.token_frames(plan[-1]) for plan in plans)
    padded = reflected(
        scaled(waveform, "the waveform"),
        torch.tensor(lengths, device=waveform.device),
        max_frames,
        config,
    )
    split = []
    for clip, plan in enumerate(plans):
        for window in plan:
            first = window.first_frame * config.hop_samples
            end = first + config.span(windows.token_frames(window))
            split.append(ClipWindow(clip, window, padded[clip, first:end]))
    return split


def check_lengths(waveform: Tensor, lengths: Tensor | None) -> list[int]:
    """Return the number of samples of each clip of a batch (B, S).

    Raises:
        AudioError: The batch is not a float tensor (B, S), or the lengths do not fit it.
    """
    is_tensor = isinstance(waveform, Tensor)
    if not is_tensor or waveform.ndim != 2 or not waveform.is_floating_point() or 0 in waveform.shape:
        got = f"{waveform.dtype} of shape {tuple(waveform.shape)}" if is_tensor else type(waveform).__name__
        raise AudioError(
            f"forward expects a non-empty float waveform (B, S), got {got}; use encode_clip or encode_frames "
            "for other audio."
        )
    if lengths is None:
        return [waveform.shape[1]] * waveform.shape[0]
    try:
        samples = [int(length) for length in lengths]
    except (TypeError, ValueError) as error:
        raise AudioError(f"lengths must have a number of samples for each clip, got {lengths!r}.") from error
    if len(samples) != waveform.shape[0] or not all(1 <= n <= waveform.shape[1] for n in samples):
        raise AudioError(
            f"lengths must be {waveform.shape[0]} numbers of 1 to {waveform.shape[1]} samples, got {samples}."
        )
    return samples


def encode_batched(
    windows: Iterable[ClipWindow],
    frontend: LogMelFrontend,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
) -> Iterator[EncodedBatch]:
    """Encode windows grouped by length, so that clips of different lengths need no padding.

    The waveforms of a batch are moved to the device together, and the log-mel is computed there. ``encode``
    maps log_mel (B, 1, F, T) to features (..., B, N_T, N_F·D).
    """
    waiting: dict[int, list[ClipWindow]] = defaultdict(list)

    def flush(num_tokens: int) -> EncodedBatch:
        batch = waiting.pop(num_tokens)
        return EncodedBatch(batch, encode(_log_mel(batch, frontend, device)))

    for item in windows:
        waiting[item.window.num_tokens].append(item)
        if len(waiting[item.window.num_tokens]) == batch_size:
            yield flush(item.window.num_tokens)
    for num_tokens in sorted(waiting):
        yield flush(num_tokens)


def encode_together(
    windows: list[ClipWindow], frontend: LogMelFrontend, encoder: Encoder, device: torch.device
) -> EncodedBatch:
    """Encode windows of all lengths in one batch: short ones are padded, and the padding is masked.

    This suits accelerators, where launching many small batches takes longer than computing the padding.
    """
    log_mel = _log_mel(windows, frontend, device)
    num_tokens = [item.window.num_tokens for item in windows]
    if min(num_tokens) == max(num_tokens):  # attention without a mask is faster
        return EncodedBatch(windows, encoder.frames(log_mel))
    ends = torch.tensor(num_tokens, device=device)[:, None]
    time_mask = torch.arange(max(num_tokens), device=device) < ends
    features = encoder.frames(log_mel, mask_of_tokens(time_mask, encoder.config.grid[0]))
    return EncodedBatch(windows, features * time_mask[..., None])


def _log_mel(windows: list[ClipWindow], frontend: LogMelFrontend, device: torch.device) -> Tensor:
    """Return normalised log-mel (B, 1, F, T), zero after the end of each window."""
    samples = nn.utils.rnn.pad_sequence([item.samples for item in windows], batch_first=True)
    if device.type == "cuda" and samples.device.type == "cpu":
        samples = samples.pin_memory()  # allows an asynchronous copy
    samples = samples.to(device, non_blocking=device.type == "cuda")
    # On a CPU, batching the convolution gains nothing, and its rounding depends on the batch.
    is_split = device.type == "cpu" and frontend.config.transform == "convolution"
    parts = samples.split(1) if is_split else [samples]
    log_mel = torch.cat([frontend.log_mel_block(part) for part in parts])
    num_frames = torch.tensor([item.window.num_frames for item in windows], device="cpu")
    num_frames = num_frames.clamp(max=log_mel.shape[-1])
    is_whole = bool((num_frames == log_mel.shape[-1]).all())
    num_frames = num_frames.to(device)
    log_mel = frontend.normalise(log_mel, None if is_whole else num_frames)
    if not is_whole:
        frames = torch.arange(log_mel.shape[-1], device=device)
        is_audio = frames < num_frames[:, None]
        log_mel = log_mel.where(is_audio[:, None], 0.0)
    return log_mel[:, None]


class FrameStore:
    """Collect encoded windows in one tensor (..., B, T, N_F·D).

    It is allocated once for ``expected_tokens`` and grows if a clip is longer than its header states.
    """

    def __init__(self, num_clips: int, expected_tokens: int):
        self.num_tokens = [0] * num_clips
        self._expected_tokens = expected_tokens
        self._features: Tensor | None = None

    def put(self, batch: EncodedBatch) -> None:
        """Add a batch."""
        features = batch.features
        if self._features is None:
            *lead, _, _, width = features.shape
            self._features = features.new_zeros(*lead, len(self.num_tokens), self._expected_tokens, width)
        rows_by_window: dict[Window, list[int]] = defaultdict(list)
        for row, item in enumerate(batch.windows):
            rows_by_window[item.window].append(row)
        for window, rows in rows_by_window.items():
            first, end = window.first_token, window.first_token + window.num_tokens
            if end > self._features.shape[-2]:
                self._features = F.pad(self._features, (0, 0, 0, end - self._features.shape[-2]))
            clips = [batch.windows[row].clip for row in rows]
            self._features[..., clips, first:end, :] = features[..., rows, : window.num_tokens, :]
            for clip in clips:
                self.num_tokens[clip] = max(self.num_tokens[clip], end)

    def features_and_mask(self) -> tuple[Tensor, Tensor]:
        """Return the features (..., B, T, N_F·D) and the mask (B, T) bool, True for audio."""
        if self._features is None:
            raise AudioError(NO_CLIPS)
        longest = max(self.num_tokens)
        positions = torch.arange(longest, device=self._features.device)
        mask = positions < torch.tensor(self.num_tokens, device=self._features.device)[:, None]
        return self._features[..., :longest, :], mask


def segment_samples(segment_s: float, hop_s: float | None, sample_rate: int) -> tuple[int, int]:
    """Return the length and the hop of segments in samples.

    Raises:
        ConfigError: They are not positive, or the hop is longer than a segment.
    """
    hop_s = segment_s if hop_s is None else hop_s
    for name, value in (("segment_s", segment_s), ("hop_s", hop_s)):
        require(
            value in Numbers(1 / sample_rate), f"{name} must be a positive number of seconds, got {value!r}."
        )
    require(
        hop_s <= segment_s,
        f"hop_s={hop_s} is longer than segment_s={segment_s}, so that audio would be skipped; use at most "
        f"{segment_s}.",
    )
    return round(segment_s * sample_rate), round(hop_s * sample_rate)


def cut_segments(
    blocks: Iterable[Tensor], num_samples: int, hop_samples: int
) -> Iterator[tuple[int, Tensor]]:
    """Cut a waveform that arrives in blocks into segments, in memory of one segment and one block.

    The last segment is moved back to the end of the waveform, so that all have the same length. A waveform
    shorter than a segment is one segment.

    Args:
        blocks: Consecutive parts of the waveform (s,).
        num_samples: Length of a segment.
        hop_samples: Samples from the start of a segment to that of the next, at most ``num_samples``.

    Yields:
        The position of the first sample of a segment, and its samples.
    """
    first, is_first = 0, True  # the position of the first waiting sample
    waiting: list[Tensor] = []
    for block in blocks:
        waiting.append(block)
        # The segment before stays until its successor is complete, since the last one may begin within it.
        while sum(map(len, waiting)) >= (num_samples if is_first else hop_samples + num_samples):
            joined = torch.cat(waiting)
            if not is_first:
                first, joined = first + hop_samples, joined[hop_samples:]
            yield first, joined[:num_samples]
            waiting, is_first = [joined], False
    length = sum(map(len, waiting))
    if is_first or length > num_samples:
        start = 0 if is_first else length - num_samples
        yield first + start, torch.cat(waiting)[start:]


class ClipLevels:
    """Level of the loudest window of each clip."""

    def __init__(self, num_clips: int, frontend: LogMelFrontend):
        self._levels_dbfs, self._frontend = [-math.inf] * num_clips, frontend

    def put(self, batch: EncodedBatch) -> None:
        """Add a batch."""
        for item in batch.windows:
            self._levels_dbfs[item.clip] = max(self._levels_dbfs[item.clip], item.level_dbfs(self._frontend))

    def are_silent(self, silence_dbfs: float) -> list[bool]:
        """Return for each clip whether no window reaches ``silence_dbfs``."""
        return [level_dbfs < silence_dbfs for level_dbfs in self._levels_dbfs]


class ClipMeans:
    """Mean over time of each clip's frames (B, N_F·D), computed without keeping the frames."""

    def __init__(self, num_clips: int):
        self._num_tokens = [0] * num_clips
        self._sums: Tensor | None = None

    def put(self, batch: EncodedBatch) -> None:
        """Add a batch."""
        sums = batch.features.float().sum(dim=-2).cpu()
        if self._sums is None:
            self._sums = sums.new_zeros(len(self._num_tokens), sums.shape[-1])
        for item, total in zip(batch.windows, sums, strict=True):
            self._sums[item.clip] += total
            self._num_tokens[item.clip] += item.window.num_tokens

    def means(self) -> Tensor:
        """Return the means (B, N_F·D) on the CPU."""
        if self._sums is None:
            raise AudioError(NO_CLIPS)
        return self._sums / torch.tensor(self._num_tokens, device="cpu")[:, None]
