"""Random crops of clips: waveforms with the context of their first and last frame, or spectrogram columns.

A crop of T frames starts at any frame of the clip from 0 to (frames − T), so every frame is reached, and its
log-mel frames equal those of the whole clip's spectrogram. Shapes: S samples, F mels, T frames.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from m2d_hub.audio import AudioPart, open_audio
from m2d_hub.config import EPSILON, FrontendConfig
from m2d_hub.errors import AudioError

from .manifest import Entry

UNKNOWN_FRAMES = 1 << 40  # libsndfile's answer where a header does not say
RESAMPLING_MARGIN_S = 0.02  # read beyond both ends of a part that is resampled
FADES_A_SECOND = 16  # a fade takes 1/16 s
SILENCE = math.log(EPSILON)  # log-mel value of digital silence


@dataclass(frozen=True)
class Crop:
    """A part of a clip and where it starts."""

    values: np.ndarray  # waveform (S,), or log-mel spectrogram (F, T), float32
    first_frame: int  # of the clip's spectrogram


@dataclass(frozen=True)
class CropPlan:
    """The part to cut out of each clip."""

    frontend: FrontendConfig
    num_frames: int  # T
    repeat_short: bool  # a clip shorter than the crop: repeated, or padded with silence
    keep_short: bool = False  # or left as it is: its crop has fewer frames
    fades: bool = False  # a repeated clip begins and ends with fades
    from_start: bool = False  # crops start at the clip's first frame, or anywhere

    @property
    def num_samples(self) -> int:
        """Samples of T frames, the windows of the first and last frame included."""
        return (self.num_frames - 1) * self.frontend.hop_samples + self.frontend.window_samples

    def draw_start(self, spare: int, rng: np.random.Generator) -> int:
        """The crop's first frame, of those from 0 to ``spare``."""
        return 0 if self.from_start else int(rng.integers(spare + 1))

    def beginning(self, waveform: np.ndarray) -> np.ndarray:
        """The first T frames' samples of a waveform (S,), lengthened as crops are."""
        num_samples = (self.num_frames - 1) * self.frontend.hop_samples
        if len(waveform) >= num_samples or self.keep_short:
            return waveform[:num_samples]
        return self.lengthened(waveform, num_samples)

    def lengthened(self, waveform: np.ndarray, num_samples: int) -> np.ndarray:
        """A shorter waveform (S,) at ``num_samples``: padded with silence, or repeated.

        A repeated one begins and ends with linear fades of 1/16 s, as the paper's reference [73] has it.
        """
        if not self.repeat_short:
            return np.pad(waveform, (0, num_samples - len(waveform)))
        waveform = np.resize(waveform, num_samples)
        if self.fades:
            fade = min(self.frontend.sample_rate // FADES_A_SECOND, num_samples)
            ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
            waveform[:fade] *= ramp
            waveform[num_samples - fade :] *= ramp[::-1]
        return waveform


def crop_waveform(entry: Entry, plan: CropPlan, rng: np.random.Generator) -> Crop:
    """Reads a random crop of an audio file at the plan's sample rate, mono.

    Raises:
        AudioError: The file is unreadable, empty, or holds non-finite samples.
    """
    frontend = plan.frontend
    if isinstance(entry.path, AudioPart):
        (clip,) = open_audio(entry.path, frontend.sample_rate)
        return _crop_array(torch.cat(list(clip.blocks())).numpy(), plan, rng)
    with _open_sound(entry) as sound:
        known = 0 < sound.frames < UNKNOWN_FRAMES
        total = _resampled(sound.frames, sound.samplerate, frontend.sample_rate) if known else 0
        spare = total // frontend.hop_samples + 1 - plan.num_frames
        if spare < 0 or not known:
            waveform = _read_part(sound, entry, 0, None, frontend.sample_rate)
            return _crop_array(waveform, plan, rng)
        first_frame = plan.draw_start(spare, rng)
        start = first_frame * frontend.hop_samples - frontend.window_samples // 2
        stop = start + plan.num_samples
        waveform = _read_part(sound, entry, max(0, start), min(stop, total), frontend.sample_rate)
    return Crop(_reflect(waveform, max(0, -start), plan.num_samples), first_frame)


def _crop_array(waveform: np.ndarray, plan: CropPlan, rng: np.random.Generator) -> Crop:
    """Crops a waveform that was read whole, lengthening a short one first."""
    frontend, half = plan.frontend, plan.frontend.window_samples // 2
    shortest = plan.num_samples - half
    own_frames = len(waveform) // frontend.hop_samples + 1
    if own_frames < plan.num_frames:
        if plan.keep_short:
            num_samples = replace(plan, num_frames=own_frames).num_samples
            waveform = np.pad(waveform, (0, max(0, half + 1 - len(waveform))))[: num_samples - half]
            return Crop(_reflect(waveform, half, num_samples), 0)
        waveform = plan.lengthened(waveform, shortest)
    spare = max(0, len(waveform) // frontend.hop_samples + 1 - plan.num_frames)
    first_frame = plan.draw_start(spare, rng)
    start = first_frame * frontend.hop_samples - half
    part = waveform[max(0, start) : start + plan.num_samples]
    return Crop(_reflect(part, max(0, -start), plan.num_samples), first_frame)


def _reflect(waveform: np.ndarray, before: int, num_samples: int) -> np.ndarray:
    """Mirrors a clip's edges into the window of its first and last frame, as a centred spectrogram does."""
    after = num_samples - before - len(waveform)
    if after > len(waveform) - 1:  # a header that promised more than the file holds
        waveform = np.pad(waveform, (0, after))
        after = 0
    return np.pad(waveform, (before, after), mode="reflect").astype(np.float32, copy=False)


def crop_spectrogram(entry: Entry, plan: CropPlan, rng: np.random.Generator) -> Crop:
    """Reads a random crop of a log-mel spectrogram stored as ``.npy`` (F, frames), before normalisation.

    Raises:
        AudioError: The file is unreadable, or has another number of mels.
    """
    try:
        stored = (
            np.load(entry.path, mmap_mode="r") if not entry.size else np.load(io.BytesIO(read_bytes(entry)))
        )
    except (OSError, ValueError) as error:
        raise AudioError(f"{entry} cannot be read as a spectrogram: {error}.") from error
    log_mel = stored.reshape(stored.shape[-2:]) if stored.ndim > 1 else stored
    if log_mel.ndim != 2 or log_mel.shape[0] != plan.frontend.n_mels or not log_mel.shape[1]:
        raise AudioError(f"{entry} has the shape {stored.shape}, expected ({plan.frontend.n_mels}, frames).")
    first_frame = plan.draw_start(max(0, log_mel.shape[1] - plan.num_frames), rng)
    part = np.array(log_mel[:, first_frame : first_frame + plan.num_frames], dtype=np.float32)
    missing = plan.num_frames - part.shape[1]
    if missing and plan.repeat_short:
        part = part[:, np.arange(plan.num_frames) % part.shape[1]]
    elif missing:
        part = np.pad(part, ((0, 0), (0, missing)), constant_values=SILENCE)
    if not np.isfinite(part).all():
        raise AudioError(f"{entry} holds non-finite values.")
    return Crop(part, first_frame)


def read_bytes(entry: Entry) -> bytes:
    """The bytes of a shard's member."""
    with open(entry.path, "rb") as shard:
        shard.seek(entry.offset)
        return shard.read(entry.size)


def _open_sound(entry: Entry):
    import soundfile

    try:
        return soundfile.SoundFile(io.BytesIO(read_bytes(entry)) if entry.size else entry.path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(f"{entry} cannot be read as audio: {error}.") from error


def _read_part(sound, entry: Entry, start: int, stop: int | None, sample_rate: int) -> np.ndarray:
    """Samples ``start`` … ``stop`` of the clip at ``sample_rate``, mono; the whole clip for stop None."""
    import soundfile

    divisor = math.gcd(sound.samplerate, sample_rate)
    step_in, step_out = sound.samplerate // divisor, sample_rate // divisor
    margin = 0 if step_in == step_out else math.ceil(RESAMPLING_MARGIN_S * divisor)
    first = max(0, start // step_out - margin)  # in steps that hold whole samples at both rates
    last = None if stop is None else (-(-stop // step_out) + margin) * step_in
    try:
        if first:
            sound.seek(min(first * step_in, sound.frames))
        raw = sound.read(-1 if last is None else last - first * step_in, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{entry} cannot be read as audio: {error}.") from error
    mono = raw.mean(axis=1) if raw.shape[1] > 1 else raw[:, 0]
    if not len(mono):
        raise AudioError(f"{entry} is empty: it holds no samples.")
    if not np.isfinite(mono).all():
        raise AudioError(f"{entry} holds non-finite samples.")
    if step_in != step_out:
        mono = _resample(mono, sound.samplerate, sample_rate)
    skip = start - first * step_out
    return mono[skip:] if stop is None else mono[skip : skip + stop - start]


def _resample(waveform: np.ndarray, source_rate: int, sample_rate: int) -> np.ndarray:
    (clip,) = open_audio(torch.from_numpy(waveform), sample_rate, source_rate)
    return torch.cat(list(clip.blocks())).numpy()


def _resampled(num_samples: int, source_rate: int, sample_rate: int) -> int:
    return num_samples * sample_rate // source_rate
