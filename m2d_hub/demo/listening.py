"""What a model makes of one sound, as the page shows it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from m2d_hub.audio.clips import open_audio, read_part
from m2d_hub.model import M2D
from m2d_hub.plots import MOST_TAGS, tags_over_time
from m2d_hub.results import Tag

MOST_S = 60  # of a sound; of longer ones the beginning is shown


@dataclass(frozen=True)
class Heard:
    """A sound and what the model makes of it.

    Shapes: S samples, F mels, T frames, D features, K tags.
    """

    name: str
    waveform: torch.Tensor  # (S,) float32, mono, at the model's rate
    sample_rate: int  # Hz
    log_mel: np.ndarray  # (F, frames)
    frames: torch.Tensor  # (T, D)
    frame_hop_s: float
    tags: list[Tag]  # the likeliest, the best first; none where the model has no head
    tag_scores: np.ndarray  # (K, T), 0 to 1, of these tags over time
    is_cut: bool  # whether the sound goes on after what is here

    @property
    def duration_s(self) -> float:
        """Seconds that are here."""
        return len(self.waveform) / self.sample_rate

    @property
    def frames_span(self) -> float:
        """What the frames cover, in durations: a little more than one, since the last one is a whole one."""
        return len(self.frames) * self.frame_hop_s / self.duration_s


def read_beginning(path: str | os.PathLike[str], sample_rate: int, most_s: float = MOST_S) -> torch.Tensor:
    """The first seconds (S,) of a file, mono, at ``sample_rate``; one sample more where it goes on."""
    return read_part(open_audio(path, sample_rate)[0], 0, round(most_s * sample_rate) + 1)


def listen(model: M2D, path: str | os.PathLike[str]) -> Heard:
    """Encodes and, where the model has a head, tags the beginning of a file.

    Raises:
        AudioError: It cannot be read, or is empty.
    """
    waveform = read_beginning(path, model.sample_rate)
    most = MOST_S * model.sample_rate
    is_cut, waveform = len(waveform) > most, waveform[:most]
    frames = model.encode_frames(waveform).features[0]
    with torch.no_grad():
        log_mel = model.frontend.log_mel(waveform[None].to(model.device))[0].float().cpu().numpy()
    tags: list[Tag] = []
    scores = np.zeros((0, len(frames)), np.float32)
    if model.head is not None:
        tags, scores = tags_over_time(model, frames, MOST_TAGS)
    return Heard(
        name=Path(path).name,
        waveform=waveform,
        sample_rate=model.sample_rate,
        log_mel=log_mel,
        frames=frames,
        frame_hop_s=model.frame_hop_s,
        tags=tags,
        tag_scores=scores,
        is_cut=is_cut,
    )
