"""Random crops of clips: waveforms with the context of their first and last frame, or spectrogram columns.

A crop of T frames starts at any frame of the clip from 0 to (frames − T), so every frame is reached, and its
log-mel frames equal those of the whole clip's spectrogram. Shapes: S samples, F mels, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from m2d_hub.audio import open_audio, read_part
from m2d_hub.config import EPSILON, FrontendConfig
from m2d_hub.errors import AudioError

from .entries import Entry, read_array, read_finite

FADES_PER_SECOND = 16  # a fade takes 1/16 s
SILENCE = math.log(EPSILON)  # log-mel value of digital silence


@dataclass(frozen=True)
class Crop:
    """A part of a clip and where it starts."""

    values: np.ndarray  # waveform (S,), or log-mel spectrogram (F, T), float32
    first_frame: int  # of the clip's spectrogram
    period: float | None = None  # frames of the clip, where it is repeated


@dataclass(frozen=True)
class CropPlan:
    """How crops are taken from clips."""

    frontend: FrontendConfig
    num_frames: int  # T
    # How a shorter clip is lengthened: by silence, by repetition, or not at all.
    short_clips: Literal["pad", "repeat", "own"]
    fades: bool = False  # repeat and cut a clip from its start with fades, see beginning()
    from_start: bool = False  # start at the clip's first frame rather than anywhere

    @property
    def num_samples(self) -> int:
        """Samples of T frames, the windows of the first and last frame included."""
        return self.frontend.span(self.num_frames)

    def draw_start(self, spare: int, rng: np.random.Generator) -> int:
        """Draw the crop's first frame from 0 to ``spare``."""
        return 0 if self.from_start else int(rng.integers(spare + 1))

    def beginning(self, waveform: np.ndarray) -> np.ndarray:
        """Return the samples of the first T frames of a waveform (S,), lengthened like crops.

        With fades, the waveform is faded in and out over 1/16 s, repeated or cut, and its end is faded out,
        as in the paper's reference [73].
        """
        num_samples = (self.num_frames - 1) * self.frontend.hop_samples
        if not self.fades:
            is_complete = len(waveform) >= num_samples or self.short_clips == "own"
            return waveform[:num_samples] if is_complete else self.lengthened(waveform, num_samples)
        fade_samples = self.frontend.sample_rate // FADES_PER_SECOND
        waveform = _faded_out(_faded_out(waveform, fade_samples)[::-1], fade_samples)[::-1]
        return _faded_out(np.resize(waveform, num_samples), fade_samples)

    def lengthened(self, waveform: np.ndarray, num_samples: int) -> np.ndarray:
        """Lengthen a shorter waveform (S,) to ``num_samples`` with silence or by repetition."""
        if self.short_clips == "repeat":
            return np.resize(waveform, num_samples)
        return np.pad(waveform, (0, num_samples - len(waveform)))


def _faded_out(waveform: np.ndarray, fade_samples: int) -> np.ndarray:
    """Return a copy of a waveform (S,) whose last samples fall linearly to zero."""
    ramp = np.linspace(1.0, 0.0, fade_samples, dtype=np.float32)[-len(waveform) :]
    start = len(waveform) - len(ramp)
    return np.concatenate([waveform[:start], waveform[start:] * ramp])


def crop_waveform(entry: Entry, plan: CropPlan, rng: np.random.Generator) -> Crop:
    """Read a random crop of an audio file at the plan's sample rate, mono.

    Raises:
        AudioError: The file is unreadable, empty, or holds non-finite samples.
    """
    frontend = plan.frontend
    (clip,) = open_audio(entry.source(), frontend.sample_rate)
    if plan.fades:
        waveform = plan.beginning(torch.cat(list(clip.blocks())).numpy())
        return Crop(_reflect(waveform, frontend.window_samples // 2, plan.num_samples), 0)
    spare = frontend.num_frames(clip.expected_samples) - plan.num_frames
    if spare >= 0:
        first_frame = plan.draw_start(spare, rng)
        start = first_frame * frontend.hop_samples - frontend.window_samples // 2
        stop = min(start + plan.num_samples, clip.expected_samples)
        part = read_part(clip, max(0, start), stop)
        if len(part) == stop - max(0, start):
            return Crop(_reflect(part.numpy(), max(0, -start), plan.num_samples), first_frame)
    # Read a clip whole if it is short, or shorter than its header says.
    return _crop_array(torch.cat(list(clip.blocks())).numpy(), plan, rng)


def _crop_array(waveform: np.ndarray, plan: CropPlan, rng: np.random.Generator) -> Crop:
    """Crop a waveform that was read whole, after lengthening a short one."""
    frontend, half = plan.frontend, plan.frontend.window_samples // 2
    shortest = plan.num_samples - half
    own_frames, period = frontend.num_frames(len(waveform)), None
    if own_frames < plan.num_frames:
        if plan.short_clips == "own":
            num_samples = replace(plan, num_frames=own_frames).num_samples
            waveform = np.pad(waveform, (0, max(0, half + 1 - len(waveform))))[: num_samples - half]
            return Crop(_reflect(waveform, half, num_samples), 0)
        if plan.short_clips == "repeat":
            period = len(waveform) / frontend.hop_samples
        waveform = plan.lengthened(waveform, shortest)
    spare = max(0, frontend.num_frames(len(waveform)) - plan.num_frames)
    first_frame = plan.draw_start(spare, rng)
    start = first_frame * frontend.hop_samples - half
    part = waveform[max(0, start) : start + plan.num_samples]
    return Crop(_reflect(part, max(0, -start), plan.num_samples), first_frame, period)


def _reflect(waveform: np.ndarray, before: int, num_samples: int) -> np.ndarray:
    """Reflect a clip's edges into the window of its first and last frame, as a centred spectrogram does."""
    after = num_samples - before - len(waveform)
    if after > len(waveform) - 1:  # a crop of one frame, at the very end
        waveform = np.pad(waveform, (0, after))
        after = 0
    return np.pad(waveform, (before, after), mode="reflect").astype(np.float32, copy=False)


def crop_spectrogram(entry: Entry, plan: CropPlan, rng: np.random.Generator) -> Crop:
    """Read a random crop of a log-mel spectrogram stored as ``.npy`` (F, frames), before normalisation.

    The authors of M2D publish and read their training data in this format.

    Raises:
        AudioError: The file is unreadable, or has another number of mels.
    """
    stored = read_array(entry)
    if any(axis > 1 for axis in stored.shape[:-2]) or stored.shape[-2:-1] != (plan.frontend.n_mels,):
        raise AudioError(f"{entry} has the shape {stored.shape}, expected ({plan.frontend.n_mels}, frames).")
    log_mel = stored.reshape(plan.frontend.n_mels, -1)
    first_frame = plan.draw_start(max(0, log_mel.shape[1] - plan.num_frames), rng)
    part = read_finite(entry, log_mel[:, first_frame : first_frame + plan.num_frames])
    period, missing = part.shape[1], plan.num_frames - part.shape[1]
    if missing and plan.short_clips == "repeat":
        return Crop(part[:, np.arange(plan.num_frames) % period], first_frame, period)
    if missing and plan.short_clips == "pad":
        part = np.pad(part, ((0, 0), (0, missing)), constant_values=SILENCE)
    return Crop(part, first_frame)
