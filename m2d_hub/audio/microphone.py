"""What a microphone hears, block by block."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from m2d_hub.audio.resample import check_rate
from m2d_hub.audio.waveforms import mix
from m2d_hub.errors import ConfigError
from m2d_hub.io import importing

logger = logging.getLogger(__name__)

_BLOCK_S = 0.1


def listen(sample_rate: int, channels: int = 1) -> Iterator[Tensor]:
    """Mono blocks (s,) of the default input device, without an end.

    Args:
        sample_rate: Hz, of those that the device has.
        channels: Recorded and averaged.

    Raises:
        AudioError: ``sample_rate`` is no rate.
        ConfigError: sounddevice is not installed, or there is no such device.
    """
    rate = check_rate(sample_rate, "sample_rate")
    way_out = "On Linux, PortAudio is not in it: apt install libportaudio2."
    with importing("sounddevice and PortAudio", "a microphone", "live", way_out):
        import sounddevice
    try:
        with sounddevice.InputStream(
            samplerate=rate, channels=channels, dtype="float32", latency="high"
        ) as device:
            while True:
                block, has_overflowed = device.read(round(_BLOCK_S * rate))
                if has_overflowed:
                    logger.warning("the model is slower than the microphone: some of the sound is lost.")
                yield torch.from_numpy(mix(block.T))
    except sounddevice.PortAudioError as error:
        raise ConfigError(
            f"the microphone cannot be opened with {channels} channels at sample_rate {rate} Hz ({error}); "
            "python -m sounddevice lists devices."
        ) from error
