"""Windows of many clips through frontend and encoder in batches, and back to their clips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.audio.clips import AudioClip
from m2d_hub.audio.waveforms import scaled
from m2d_hub.errors import AudioError
from m2d_hub.nn.encoder import Encoder, mask_of_tokens
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.windows import WaveformCutter, Window, Windows, reflected

NO_CLIPS = "there are no clips to encode: give at least one."


@dataclass(frozen=True)
class ClipWindow:
    """One window of one clip."""

    clip: int  # the clip's place in the call
    window: Window
    samples: Tensor  # (s,) that the frames of its tokens are computed from; zero where its clip has none


@dataclass(frozen=True)
class EncodedBatch:
    """Windows encoded together: of equal length, or zero beyond their own."""

    windows: list[ClipWindow]
    features: Tensor  # (..., B, N_T, N_F·D)


def read_windows(
    clips: Iterable[AudioClip], frontend: LogMelFrontend, windows: Windows
) -> Iterator[ClipWindow]:
    """Reads clip after clip in blocks and cuts each into windows."""
    for index, clip in enumerate(clips):
        cutter = WaveformCutter(frontend.config, windows)
        for block in clip.blocks():
            for window, samples in cutter.push(block):
                yield ClipWindow(index, window, samples)
        for window, samples in cutter.finish():
            yield ClipWindow(index, window, samples)


def split_windows(
    waveform: Tensor, lengths: list[int], frontend: LogMelFrontend, windows: Windows
) -> list[ClipWindow]:
    """Windows of a batch of waveforms (B, S), differentiable; samples beyond a clip's length play no part."""
    config = frontend.config
    plans = [windows.plan(config.num_frames(length)) for length in lengths]
    most_frames = max(plan[-1].first_frame + windows.used_frames(plan[-1]) for plan in plans)
    padded = reflected(
        scaled(waveform, "the waveform"),
        torch.tensor(lengths, device=waveform.device),
        most_frames,
        config,
    )
    found = []
    for clip, plan in enumerate(plans):
        for window in plan:
            first = window.first_frame * config.hop_samples
            end = first + config.span(windows.used_frames(window))
            found.append(ClipWindow(clip, window, padded[clip, first:end]))
    return found


def check_lengths(waveform: Tensor, lengths: Tensor | None) -> list[int]:
    """Samples of each clip of a batch (B, S).

    Raises:
        AudioError: The batch is no float (B, S), or the lengths do not fit it.
    """
    is_tensor = isinstance(waveform, Tensor)
    if not is_tensor or waveform.ndim != 2 or not waveform.is_floating_point() or 0 in waveform.shape:
        got = f"{waveform.dtype} of shape {tuple(waveform.shape)}" if is_tensor else type(waveform).__name__
        raise AudioError(
            f"forward takes a float waveform (B, S) that is not empty, got {got}; encode_clip and "
            "encode_frames take any audio."
        )
    if lengths is None:
        return [waveform.shape[1]] * waveform.shape[0]
    try:
        samples = [int(length) for length in lengths]
    except (TypeError, ValueError) as error:
        raise AudioError(f"lengths must be a number of samples for each clip, got {lengths!r}.") from error
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
    """Encodes windows as they come, grouped by length, so that ragged clips need no padding.

    A batch goes to the device as waveforms in one piece, and its log-mel is computed there.

    Args:
        windows: Of any clips, in any order.
        frontend: Makes log-mel of them.
        encode: Maps log_mel (B, 1, F, T) to features (..., B, N_T, N_F·D).
        batch_size: Most windows encoded at once.
        device: That of the encoder.
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
    """Encodes windows of all lengths in one call: short ones are padded, and no token sees the padding.

    This suits devices where many small computations take longer to begin than some padding takes to compute.
    """
    log_mel = _log_mel(windows, frontend, device)
    num_tokens = [item.window.num_tokens for item in windows]
    if min(num_tokens) == max(num_tokens):  # attention without a mask is faster
        return EncodedBatch(windows, encoder.frames(log_mel))
    ends = torch.tensor(num_tokens, device=device)[:, None]
    heard = torch.arange(max(num_tokens), device=device) < ends
    features = encoder.frames(log_mel, mask_of_tokens(heard, encoder.config.grid[0]))
    return EncodedBatch(windows, features * heard[..., None])


def _log_mel(windows: list[ClipWindow], frontend: LogMelFrontend, device: torch.device) -> Tensor:
    """Normalised log-mel (B, 1, F, T) of the longest window's tokens, zero where a clip has no frames."""
    samples = nn.utils.rnn.pad_sequence([item.samples for item in windows], batch_first=True)
    if device.type == "cuda" and samples.device.type == "cpu":
        samples = samples.pin_memory()  # CUDA copies from it while this program goes on
    samples = samples.to(device, non_blocking=device.type == "cuda")
    # On a CPU a convolution gains nothing by one call, and its rounding depends on what else is in the batch.
    is_alone = device.type == "cpu" and frontend.config.transform == "convolution"
    parts = samples.split(1) if is_alone else [samples]
    log_mel = frontend.normalise(torch.cat([frontend.log_mel_block(part) for part in parts]))
    num_frames = [item.window.num_frames for item in windows]
    if min(num_frames) < log_mel.shape[-1]:
        frames = torch.arange(log_mel.shape[-1], device=device)
        is_audio = frames < torch.tensor(num_frames, device=device)[:, None]
        log_mel = log_mel.where(is_audio[:, None], 0.0)
    return log_mel[:, None]


class FrameStore:
    """Puts encoded windows in their place in (..., B, T, N_F·D), allocated once.

    ``expected_tokens`` may fall short (a header can be wrong); then the store grows.
    """

    def __init__(self, num_clips: int, expected_tokens: int):
        self.num_tokens = [0] * num_clips
        self._expected_tokens = expected_tokens
        self._features: Tensor | None = None

    def put(self, batch: EncodedBatch) -> None:
        """Takes a batch's features."""
        features = batch.features
        if self._features is None:
            *lead, _, _, width = features.shape
            self._features = features.new_zeros(*lead, len(self.num_tokens), self._expected_tokens, width)
        rows_by_place: dict[Window, list[int]] = defaultdict(list)
        for row, item in enumerate(batch.windows):
            rows_by_place[item.window].append(row)
        for window, rows in rows_by_place.items():
            first, end = window.first_token, window.first_token + window.num_tokens
            if end > self._features.shape[-2]:
                self._features = F.pad(self._features, (0, 0, 0, end - self._features.shape[-2]))
            clips = [batch.windows[row].clip for row in rows]
            self._features[..., clips, first:end, :] = features[..., rows, : window.num_tokens, :]
            for clip in clips:
                self.num_tokens[clip] = max(self.num_tokens[clip], end)

    def features_and_mask(self) -> tuple[Tensor, Tensor]:
        """The features (..., B, T, N_F·D) and where they are audio, (B, T) bool."""
        if self._features is None:
            raise AudioError(NO_CLIPS)
        longest = max(self.num_tokens)
        positions = torch.arange(longest, device=self._features.device)
        mask = positions < torch.tensor(self.num_tokens, device=self._features.device)[:, None]
        return self._features[..., :longest, :], mask


class ClipMeans:
    """Running means over time of each clip's frames, (B, N_F·D), without keeping the frames."""

    def __init__(self, num_clips: int):
        self._num_tokens = [0] * num_clips
        self._sums: Tensor | None = None

    def put(self, batch: EncodedBatch) -> None:
        """Adds a batch of windows."""
        sums = batch.features.float().sum(dim=-2).cpu()
        if self._sums is None:
            self._sums = sums.new_zeros(len(self._num_tokens), sums.shape[-1])
        for item, total in zip(batch.windows, sums, strict=True):
            self._sums[item.clip] += total
            self._num_tokens[item.clip] += item.window.num_tokens

    def means(self) -> Tensor:
        """(B, N_F·D) on the CPU."""
        if self._sums is None:
            raise AudioError(NO_CLIPS)
        return self._sums / torch.tensor(self._num_tokens, device="cpu")[:, None]
