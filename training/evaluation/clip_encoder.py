"""Features of clips from a frozen model: read, cropped or padded, encoded, pooled over time.

Shapes: N clips, B clips of a batch, S samples, T time frames, L layers, K features of a clip.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Literal, TypeVar

import torch
from torch import Tensor

from m2d_hub.audio import open_audio
from m2d_hub.errors import AudioError
from m2d_hub.model import M2D

from ..data.annotations import AudioFile

Pooling = Literal["mean", "max", "mean+max", "mean+std"]
BATCH_CLIPS = 64  # clips encoded, and stored, together
LONG_CLIP_S = 20.0  # longer clips are streamed from disk, not held in memory
BATCH_S = BATCH_CLIPS * LONG_CLIP_S  # of crops held in memory together, at most

Result = TypeVar("Result")


def read_in_threads(
    read: Callable[[AudioFile], Result], files: Sequence[AudioFile], num_workers: int, prefetch: int = 256
) -> Iterator[Result]:
    """Yield ``read(file)`` of each file in order, with at most ``prefetch`` results waiting."""
    pool, pending = ThreadPoolExecutor(num_workers), deque[Future[Result]]()
    try:
        for file in files:
            pending.append(pool.submit(read, file))
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_clip(file: AudioFile, sample_rate: int, max_samples: float = 0) -> Tensor | AudioFile:
    """Return a clip's waveform (S,), or the file itself if it is longer than both limits.

    Raises:
        AudioError: The clip cannot be read.
    """
    (clip,) = open_audio(file, sample_rate)
    max_samples = max(max_samples, LONG_CLIP_S * sample_rate)
    blocks, num_samples = list[Tensor](), 0
    for block in clip.blocks():
        blocks.append(block)
        num_samples += len(block)
        if num_samples > max_samples:
            return file
    return torch.cat(blocks)


@dataclass(frozen=True)
class EncodedBatch:
    """Some of the clips of a call."""

    clips: list[int]  # indices of the encoded clips in the call
    features: Tensor  # (B, L, K) float32; L is 1 for the last layer alone
    errors: dict[int, str]  # indices of unreadable clips, with the reason


class ClipEncoder:
    """A frozen model with the settings of feature extraction."""

    def __init__(
        self,
        model: M2D,
        pooling: Pooling = "mean",
        *,
        all_layers: bool = False,
        num_samples: int | None = None,
        batch_size: int = 16,
    ):
        """Store the settings.

        Args:
            model: Its head, if any, is not used.
            pooling: How a clip's frames become one feature; parts joined by ``+`` are concatenated.
            all_layers: Return every block's features instead of the last block's.
            num_samples: Crop or zero-pad each clip to this many, at the model's rate; None: whole clips.
            batch_size: Maximum number of windows encoded together; it does not change the features.
        """
        self.model, self.pooling, self.all_layers = model, pooling, all_layers
        self.num_samples, self.batch_size = num_samples, batch_size

    def key(self) -> str:
        """Return a hash of everything that determines the features: weights, configuration and settings."""
        config = self.model.config
        settings = [asdict(config.frontend), asdict(config.encoder), self.model.window_s]
        settings += [self.pooling, self.all_layers, self.num_samples]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, tensor in self.model.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:24]

    @property
    def batch_clips(self) -> int:
        """Clips read and encoded together; fewer if crops are long."""
        crop_s = (self.num_samples or 0) / self.model.sample_rate
        return max(1, min(BATCH_CLIPS, int(BATCH_S / crop_s))) if crop_s else BATCH_CLIPS

    def read(self, file: AudioFile) -> Tensor | AudioFile:
        """Return a waveform (S,) of ``num_samples``, or a clip as :func:`read_clip` returns it.

        A longer clip is cropped at a random position (paper, section IV-B), which depends only on its name.

        Raises:
            AudioError: The clip cannot be read.
        """
        if self.num_samples is None:
            return read_clip(file, self.model.sample_rate)
        clip = read_clip(file, self.model.sample_rate, max_samples=2 * self.num_samples)
        if isinstance(clip, Tensor):
            start = self._crop_start(file, len(clip))
            clip = clip[start : start + self.num_samples]
        else:  # decode twice rather than hold it in memory
            total = sum(len(block) for block in self._blocks(file))
            clip = _span(self._blocks(file), self._crop_start(file, total), self.num_samples)
        return torch.nn.functional.pad(clip, (0, self.num_samples - len(clip)))

    def _blocks(self, file: AudioFile) -> Iterator[Tensor]:
        return open_audio(file, self.model.sample_rate)[0].blocks()

    def _crop_start(self, file: AudioFile, length: int) -> int:
        spare = max(0, length - (self.num_samples or 0))
        return zlib.crc32(os.path.basename(file).encode()) % (spare + 1)

    @torch.no_grad()
    def encode(self, clips: Sequence[Tensor | AudioFile]) -> Tensor:
        """Return features (B, L, K) of waveforms (S,) of any lengths, or of files."""
        if self.pooling == "mean" and not self.all_layers:
            return self.model.encode_clip(list(clips), batch_size=self.batch_size)[:, None]
        encode = self.model.encode_layers if self.all_layers else self.model.encode_frames
        pooled = []
        for first in range(0, len(clips), self.batch_size):  # the frames of all layers are large
            frames = encode(list(clips[first : first + self.batch_size]), batch_size=self.batch_size)
            features = frames.features if self.all_layers else frames.features[None]
            pooled.append(pool(features, frames.mask, self.pooling).transpose(0, 1))
        return torch.cat(pooled)


def _span(blocks: Iterator[Tensor], start: int, length: int) -> Tensor:
    """Return ``length`` samples from ``start`` on, holding no others."""
    kept, position = [], 0
    for block in blocks:
        kept.append(block[max(0, start - position) : max(0, start + length - position)])
        position += len(block)
    return torch.cat(kept)


def pool(features: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool the frames of each clip into one feature.

    Args:
        features: (..., B, T, D).
        mask: (B, T) bool, True where audio is.
        pooling: Parts joined by ``+``.

    Returns:
        (..., B, D · parts).
    """
    valid = mask[..., None]
    count = valid.sum(dim=-2)
    mean = (features * valid).sum(dim=-2) / count
    parts = []
    for part in pooling.split("+"):
        if part == "mean":
            parts.append(mean)
        elif part == "max":
            parts.append(features.masked_fill(~valid, -torch.inf).amax(dim=-2))
        else:
            squares = ((features - mean[..., None, :]) * valid).square().sum(dim=-2)
            parts.append((squares / count).sqrt())
    return torch.cat(parts, dim=-1)


def encode_files(
    encoder: ClipEncoder, files: Sequence[AudioFile], num_workers: int
) -> Iterator[EncodedBatch]:
    """Encode files in batches, while threads read the next ones."""

    def read(file: AudioFile) -> Tensor | AudioFile | AudioError:
        try:
            return encoder.read(file)
        except AudioError as error:
            return error

    clips = read_in_threads(read, files, num_workers, prefetch=encoder.batch_clips)
    for first in range(0, len(files), encoder.batch_clips):
        yield _encode_batch(encoder, dict(enumerate(islice(clips, encoder.batch_clips), start=first)))


def _encode_batch(encoder: ClipEncoder, clips: dict[int, Tensor | AudioFile | AudioError]) -> EncodedBatch:
    features: dict[int, Tensor] = {}
    errors = {index: str(clip) for index, clip in clips.items() if isinstance(clip, AudioError)}
    waveforms = {index: clip for index, clip in clips.items() if isinstance(clip, Tensor)}
    if waveforms:
        encoded = encoder.encode(list(waveforms.values()))
        features |= dict(zip(waveforms, encoded, strict=True))
    for index, clip in clips.items():
        if index not in waveforms and not isinstance(clip, (Tensor, AudioError)):
            try:
                features[index] = encoder.encode([clip])[0]
            except AudioError as error:
                errors[index] = str(error)
    rows = torch.stack(list(features.values())) if features else torch.empty(0)
    return EncodedBatch(list(features), rows, errors)


def mean_samples(files: Sequence[AudioFile], sample_rate: int, num_workers: int) -> int | None:
    """Return the mean length of files in samples, from their headers; None if no header states a length."""

    def length(file: AudioFile) -> int:
        try:
            return open_audio(file, sample_rate)[0].expected_samples
        except AudioError:
            return 0  # reported later, when the file is read

    lengths = [found for found in read_in_threads(length, files, num_workers) if found]
    return round(sum(lengths) / len(lengths)) if lengths else None
