"""Raw samples and WAV through a pipe, as soon as they are there; nothing is sought."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from m2d_hub.audio.resample import check_rate
from m2d_hub.audio.waveforms import mix, scaled
from m2d_hub.errors import AudioError, ConfigError

logger = logging.getLogger(__name__)

_BYTES = {"u8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4, "f64le": 8}  # of a sample
# By a WAV header's format and bits: whole numbers, floating point.
_WAV_KINDS = {
    **{(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le"},
    **{(3, 32): "f32le", (3, 64): "f64le"},
}
_EXTENSIBLE = 0xFFFE  # the format then stands further on
_MOST_HEADER_BYTES = 1 << 24  # of a chunk before the samples, such as a picture
_ENDLESS = (0x7FFF_FFFF, 0xFFFF_FFFF)  # about: a length that was not known when it was written; or 0
_ENDLESS_MARGIN = 4096
_READ_BYTES = 1 << 16
_ENCODED = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3"}


@dataclass(frozen=True)
class PcmFormat:
    """How samples lie in a stream of bytes."""

    kind: str
    sample_rate: int  # Hz
    channels: int
    num_bytes: int | None = None  # None: to the end

    @property
    def frame_bytes(self) -> int:
        """Of one sample of every channel."""
        return _BYTES[self.kind] * self.channels


class PcmStream:
    """Mono blocks of a pipe: raw samples, or WAV, which is known by its first bytes."""

    def __init__(
        self,
        file: BinaryIO,
        kind: str | None = None,
        sample_rate: int | None = None,
        channels: int | None = None,
    ):
        """Reads the header, where there is one.

        Args:
            file: Of bytes; it need not be seekable.
            kind: Of raw samples; None: WAV, or else 16 bits.
            sample_rate: Hz of raw samples.
            channels: Of raw samples, one after another; None: 1.

        Raises:
            AudioError: A WAV header is damaged, or of compressed samples.
            ConfigError: Raw samples without a rate, or what is given contradicts a header.
        """
        self._file, self._start = file, b""
        magic = b"" if kind else _read_exactly(file, 12)
        if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
            self.format = _read_wav_header(file)
            told = {"sample_rate": (sample_rate, self.format.sample_rate)}
            told["channels"] = (channels, self.format.channels)
            for name, (given, found) in told.items():
                if given is not None and given != found:
                    raise ConfigError(
                        f"{name} {given} was given, but the WAV stream says {found}; leave it out."
                    )
            return
        encoded = next((name for start, name in _ENCODED.items() if magic.startswith(start)), None)
        if encoded is not None:
            raise AudioError(
                f"the stream is {encoded}, not raw samples or WAV; decode it on the way, for instance: "
                "ffmpeg -i - -f s16le -ac 1 -ar 16000 -"
            )
        if sample_rate is None:
            raise ConfigError("raw samples do not say their rate: give sample_rate in Hz, or send WAV.")
        rate = check_rate(sample_rate, "sample_rate")
        self.format, self._start = PcmFormat(kind or "s16le", rate, channels or 1), magic

    def blocks(self) -> Iterator[Tensor]:
        """Mono waveforms (s,), float32, as soon as they are there.

        What does not fill a sample of all channels at the end is left out, and a warning tells.
        """
        size, left = self.format.frame_bytes, self.format.num_bytes
        data = self._start
        while True:
            whole = len(data) - len(data) % size
            if whole:
                yield torch.from_numpy(self._decoded(data[:whole]))
            data = data[whole:]
            most = _READ_BYTES if left is None else min(_READ_BYTES, left)
            more = _read_some(self._file, most) if most else b""
            if not more:
                break
            left = None if left is None else left - len(more)
            data += more
        if data:
            logger.warning(
                "the stream ends within a sample: its last %d bytes are left out (%d make one of %s in %d "
                "channels).",
                *(len(data), size, self.format.kind, self.format.channels),
            )

    def _decoded(self, data: bytes) -> np.ndarray:
        kind = self.format.kind
        if kind == "s24le":  # to the upper bytes of 32 bits
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data, kind = padded.tobytes(), "s32le"
        code = {"u8": "u1", "s16le": "<i2", "s32le": "<i4", "f32le": "<f4", "f64le": "<f8"}[kind]
        samples = torch.from_numpy(np.frombuffer(bytearray(data), code))
        return mix(scaled(samples, "the stream").numpy().reshape(-1, self.format.channels).T)


def _read_wav_header(file: BinaryIO) -> PcmFormat:
    """The format, from what follows ``WAVE`` to the first sample."""
    known: PcmFormat | None = None
    while True:
        name, size = struct.unpack("<4sI", _header_bytes(file, 8))
        if name == b"data":
            break
        body = _header_bytes(file, size + size % 2)
        if name == b"fmt ":
            known = _wav_format(body)
    if known is None:
        raise AudioError("the stream's WAV header says nothing of its samples; send raw samples, or mend it.")
    is_endless = not size or any(abs(size - endless) <= _ENDLESS_MARGIN for endless in _ENDLESS)
    return PcmFormat(known.kind, known.sample_rate, known.channels, None if is_endless else size)


def _wav_format(body: bytes) -> PcmFormat:
    if len(body) < 16:
        raise AudioError("the stream's WAV header is damaged: its format has less than 16 bytes.")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if code == _EXTENSIBLE and len(body) >= 26:
        (code,) = struct.unpack_from("<H", body, 24)
    if (code, bits) not in _WAV_KINDS or not channels:
        raise AudioError(
            f"the stream is WAV of format {code} with {bits} bits in {channels} channels, which is not read "
            "from a pipe; send 8 to 32 bits, or 32 or 64 of floating point."
        )
    return PcmFormat(_WAV_KINDS[code, bits], check_rate(rate, "the WAV stream's rate"), channels)


def _header_bytes(file: BinaryIO, size: int) -> bytes:
    data = _read_exactly(file, size) if size <= _MOST_HEADER_BYTES else b""
    if len(data) < size:
        raise AudioError("the stream ends within its WAV header, or the header is damaged.")
    return data


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _read_some(file: BinaryIO, most: int) -> bytes:
    """What is there, without waiting for more; nothing at the end of the stream."""
    return file.read1(most) if isinstance(file, io.BufferedReader) else file.read(most)
