"""Windows of many clips through the encoder in batches of equal length, and back to their clips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m2d_hub.audio.clips import AudioClip
from m2d_hub.errors import AudioError
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.windows import Window, Windows

NO_CLIPS = "there are no clips to encode: give at least one."


@dataclass(frozen=True)
class ClipWindow:
    """One window of one clip."""

    clip: int  # the clip's place in the call
    window: Window
    log_mel: Tensor  # (F, N_T · patch frames), normalised


@dataclass(frozen=True)
class EncodedBatch:
    """Windows of equal length, encoded together."""

    windows: list[ClipWindow]
    features: Tensor  # (..., B, N_T, N_F·D)


def read_windows(
    clips: Iterable[AudioClip],
    frontend: LogMelFrontend,
    windows: Windows,
    device: torch.device,
) -> Iterator[ClipWindow]:
    """Reads clip after clip in blocks and cuts each into windows; log-mel is computed on ``device``."""
    for index, clip in enumerate(clips):
        blocks = (block.to(device, non_blocking=device.type == "cuda") for block in clip.blocks())
        log_mel = (frontend.normalise(block) for block in frontend.stream_log_mel(blocks))
        for window, frames in windows.cut(log_mel):
            yield ClipWindow(index, window, frames)


def split_windows(
    waveform: Tensor,
    lengths: list[int],
    frontend: LogMelFrontend,
    windows: Windows,
) -> list[ClipWindow]:
    """Windows of a batch of waveforms (B, S), differentiable; samples beyond a clip's length play no part."""
    found: list[ClipWindow] = []
    for length in sorted(set(lengths)):
        clips = [index for index, clip_length in enumerate(lengths) if clip_length == length]
        for clip, log_mel in zip(clips, frontend(waveform[clips, :length])[:, 0], strict=True):
            found += [ClipWindow(clip, window, frames) for window, frames in windows.cut([log_mel])]
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
    windows: Iterable[ClipWindow], encode: Callable[[Tensor], Tensor], batch_size: int
) -> Iterator[EncodedBatch]:
    """Encodes windows as they come, grouped by length, so that ragged clips need no padding.

    Args:
        windows: Of any clips, in any order.
        encode: Maps log_mel (B, 1, F, T) to features (..., B, N_T, N_F·D).
        batch_size: Most windows encoded at once.
    """
    waiting: dict[int, list[ClipWindow]] = defaultdict(list)

    def flush(num_tokens: int) -> EncodedBatch:
        batch = waiting.pop(num_tokens)
        return EncodedBatch(batch, encode(torch.stack([item.log_mel for item in batch])[:, None]))

    for item in windows:
        waiting[item.window.num_tokens].append(item)
        if len(waiting[item.window.num_tokens]) == batch_size:
            yield flush(item.window.num_tokens)
    for num_tokens in sorted(waiting):
        yield flush(num_tokens)


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
            self._features[..., clips, first:end, :] = features[..., rows, :, :]
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
