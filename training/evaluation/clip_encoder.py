"""Clips to features with a frozen model: read, cropped or padded, encoded, pooled over time.

Shapes: N clips, B clips of a call, S samples, T time frames, L layers, K features of a clip.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from m2d_hub.audio import open_audio
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.model import M2D

from ..data.parts import AudioFile

Pooling = Literal["mean", "max", "mean+max", "mean+std"]
PART_CLIPS = 64  # encoded, and stored, together


@dataclass(frozen=True)
class EncodedPart:
    """Some of the clips of a call."""

    clips: list[int]  # their places in the call
    features: Tensor  # (B, L, K) float32; L is 1 for the last layer alone
    errors: dict[int, str]  # places of clips that cannot be read, and why


class ClipEncoder:
    """A frozen model with the way that it is used on clips."""

    def __init__(
        self,
        model: M2D,
        pooling: Pooling = "mean",
        *,
        all_layers: bool = False,
        num_samples: int | None = None,
        batch_size: int = 16,
    ):
        """Keeps the settings.

        Args:
            model: Its head, if any, plays no part.
            pooling: How a clip's frames become one feature; parts joined by ``+`` stand one after another.
            all_layers: Every block's features instead of the last's.
            num_samples: Crops or zero-pads each clip to this many at the model's rate; None: as it is.
            batch_size: Most windows encoded at once; changes no number.

        Raises:
            ConfigError: The pooling is not known.
        """
        if pooling not in get_args(Pooling):
            raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}.")
        self.model, self.pooling, self.all_layers = model, pooling, all_layers
        self.num_samples, self.batch_size = num_samples, batch_size

    def key(self) -> str:
        """Differs wherever features would: by weights, sizes, frontend, window, layers, pooling, length."""
        config = self.model.config
        settings = [asdict(config.frontend), asdict(config.encoder), self.model.window_s]
        settings += [self.pooling, self.all_layers, self.num_samples]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, tensor in self.model.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:24]

    def read(self, file: AudioFile) -> Tensor | str:
        """A clip's waveform (S,), or why there is none.

        A clip longer than ``num_samples`` is cropped at a random place (paper, section IV-B), which is always
        the same for files of the same name.
        """
        try:
            (clip,) = open_audio(file, self.model.sample_rate)
            waveform = torch.cat(list(clip.blocks()))
        except AudioError as error:
            return str(error)
        if self.num_samples is None:
            return waveform
        spare = max(0, len(waveform) - self.num_samples)
        start = zlib.crc32(os.path.basename(file).encode()) % (spare + 1)
        waveform = waveform[start : start + self.num_samples]
        return torch.nn.functional.pad(waveform, (0, self.num_samples - len(waveform)))

    @torch.no_grad()
    def encode(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Features (B, L, K) of waveforms (S,) of any lengths."""
        if self.pooling == "mean" and not self.all_layers:
            return self.model.encode_clip(list(waveforms), batch_size=self.batch_size)[:, None]
        encode = self.model.encode_layers if self.all_layers else self.model.encode_frames
        pooled = []
        for first in range(0, len(waveforms), self.batch_size):  # every frame of every layer is large
            few = list(waveforms[first : first + self.batch_size])
            frames = encode(few, batch_size=self.batch_size)
            features = frames.features if self.all_layers else frames.features[None]
            pooled.append(pool(features, frames.mask, self.pooling).transpose(0, 1))
        return torch.cat(pooled)


def pool(features: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One feature for each clip.

    Args:
        features: (..., B, T, D).
        mask: (B, T) bool, True where audio is.
        pooling: Parts joined by ``+``.

    Returns:
        (..., B, D · parts).
    """
    inside = mask[..., None]
    count = inside.sum(dim=-2)
    mean = (features * inside).sum(dim=-2) / count
    parts = []
    for part in pooling.split("+"):
        if part == "mean":
            parts.append(mean)
        elif part == "max":
            parts.append(features.masked_fill(~inside, -torch.inf).amax(dim=-2))
        else:
            squares = ((features - mean[..., None, :]) * inside).square().sum(dim=-2)
            parts.append((squares / count).sqrt())
    return torch.cat(parts, dim=-1)


def encode_files(encoder: ClipEncoder, files: Sequence[AudioFile], num_workers: int) -> Iterator[EncodedPart]:
    """Encodes files in parts, while threads read the next one's.

    Args:
        encoder: The model and its settings.
        files: Paths, or parts of what is there.
        num_workers: Threads that read.
    """
    with ThreadPoolExecutor(num_workers) as readers:

        def start_reading(first: int) -> tuple[range, list[Future[Tensor | str]]]:
            places = range(first, min(first + PART_CLIPS, len(files)))
            return places, [readers.submit(encoder.read, files[place]) for place in places]

        ahead = start_reading(0)
        for first in range(0, len(files), PART_CLIPS):
            (places, waveforms), ahead = ahead, start_reading(first + PART_CLIPS)
            yield _encode_part(encoder, places, (waveform.result() for waveform in waveforms))


def _encode_part(
    encoder: ClipEncoder, places: Sequence[int], waveforms: Iterable[Tensor | str]
) -> EncodedPart:
    good: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for place, waveform in zip(places, waveforms, strict=True):
        if isinstance(waveform, str):
            errors[place] = waveform
        else:
            good[place] = waveform
    features = encoder.encode(list(good.values())) if good else torch.empty(0)
    return EncodedPart(list(good), features, errors)


def mean_samples(files: Sequence[AudioFile], sample_rate: int, num_workers: int) -> int | None:
    """Mean length of files in samples at a rate, as their headers tell it; None where no file tells."""

    def length(file: AudioFile) -> int:
        try:
            return open_audio(file, sample_rate)[0].expected_samples
        except AudioError:
            return 0  # told later, when it is read

    with ThreadPoolExecutor(num_workers) as readers:
        lengths = [found for found in readers.map(length, files) if found]
    return round(sum(lengths) / len(lengths)) if lengths else None
