"""Augmentation of waveforms in pre-training: overlaps, filters, reverberation, noise, silence and gain."""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from .config import AugmentConfig

LOW_PASS_HZ = 2_500, 7_800  # cut-off of band limits: telephones to compressed audio
HIGH_PASS_HZ = 30, 400
TILT_DB = 6.0  # largest change from the lowest to the highest frequency
REVERBERATION_S = 0.1, 0.8  # decay to -60 dB
OVERLAP_DB = -12.0, 0.0  # RMS level of the second clip, relative to the first
NOISE_DB = -40.0, -5.0  # RMS level of the noise, relative to the clip
SILENCE_DBFS = -110.0, -80.0  # RMS level


def overlapped(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the sum of two clips (S,), the second at a random lower or equal RMS level."""
    gain = _gain(rng.uniform(*OVERLAP_DB)) * _rms(first) / max(_rms(second), 1e-9)
    return first + np.float32(gain) * second


def augmented(
    waveform: np.ndarray, config: AugmentConfig, sample_rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Filter, reverberate and attenuate a clip (S,), and add noise, each with the share of ``config``.

    Returns:
        The clip, and whether it was replaced by silence.
    """
    is_silent, is_filtered, is_reverberant, is_noisy = rng.random(4) < (
        config.silence,
        config.filter,
        config.reverberation,
        config.noise,
    )
    if is_silent:
        return _noise(len(waveform), rng) * np.float32(_gain(rng.uniform(*SILENCE_DBFS))), True
    level = _rms(waveform)
    if is_filtered or is_reverberant:
        length = next_fast_len(len(waveform), real=True)
        spectrum = rfft(waveform, length)
        if is_filtered:
            spectrum *= _response(length, sample_rate, rng)
        if is_reverberant:
            spectrum *= rfft(_room(length, sample_rate, rng))
        waveform = irfft(spectrum, length)[: len(waveform)]
        waveform *= np.float32(level / max(_rms(waveform), 1e-9))
    if is_noisy:
        waveform = waveform + _noise(len(waveform), rng) * np.float32(level * _gain(rng.uniform(*NOISE_DB)))
    return waveform * np.float32(_gain(rng.uniform(-config.gain_db, 0.0))), False


def _gain(decibels: float) -> float:
    return 10.0 ** (decibels / 20)


def _rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform))))


def _response(num_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return the gain of each frequency: a spectral tilt and, half of the time each, a low and a high cut."""
    frequencies = rfftfreq(num_samples, 1 / sample_rate)
    octaves = np.log2(np.maximum(frequencies, 50.0) / 50.0)
    gain = 10 ** (rng.uniform(-TILT_DB, TILT_DB) / 20 * octaves / octaves[-1])
    low, high = (np.exp(rng.uniform(*np.log(limits))) for limits in (HIGH_PASS_HZ, LOW_PASS_HZ))
    cuts_low, cuts_high = rng.random(2) < 0.5
    if cuts_high:
        gain = gain / np.sqrt(1 + (frequencies / high) ** 40)
    if cuts_low:
        gain = gain / np.sqrt(1 + (low / np.maximum(frequencies, 1.0)) ** 8)
    return gain.astype(np.float32)


def _room(num_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return the impulse response of a room: the direct sound and decaying noise."""
    decay_s = rng.uniform(*REVERBERATION_S)
    length = min(num_samples, int(decay_s * sample_rate))
    decay = 10 ** (-3 * np.arange(length) / (decay_s * sample_rate))
    response = np.zeros(num_samples)
    response[:length] = rng.standard_normal(length) * decay
    response *= _gain(rng.uniform(-15.0, 0.0)) / np.sqrt(np.sum(np.square(response)))
    response[0] += 1.0
    return response.astype(np.float32)


def _noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return white to brown noise of RMS level 1, float32."""
    length = next_fast_len(num_samples, real=True)
    spectrum = rng.standard_normal(2 * (length // 2 + 1), dtype=np.float32).view(np.complex64)
    slope = np.float32(rng.uniform(0.0, 1.0))
    noise = irfft(spectrum * np.maximum(np.arange(len(spectrum), dtype=np.float32), 20) ** -slope, length)
    noise = noise[:num_samples]
    return noise / np.float32(_rms(noise))
