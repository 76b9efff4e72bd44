"""Audio that is still arriving: raw samples, WAV and encoded streams from a pipe, and a microphone."""

from __future__ import annotations

import io
import itertools
import logging
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from m2d_hub.audio.decode import reading_audio
from m2d_hub.audio.inputs import check_rate, mix
from m2d_hub.audio.pyav import UNKNOWN_SIZE, decoded_frames, mono_blocks, open_container
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.io import importing

logger = logging.getLogger(__name__)

_NAME = "the stream"
# Raw formats of WAV by its code (1: integers, 3: floats) and bytes per sample.
_WAV_FORMATS = {
    **{(1, 1): "u8", (1, 2): "s16le", (1, 3): "s24le", (1, 4): "s32le"},
    **{(3, 4): "f32le", (3, 8): "f64le"},
}
_MAGIC = (
    *(b"fLaC", b"OggS", b"ID3", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"wvpk", b"MAC ", b"#!AMR"),
    *(b"FORM", b".snd", b"caff", b"RIFX", b"riff", b"FLV\1", b"TTA1", b"MPCK", b"MP+"),
)
_SYNC_WORDS = (b"\xff", b"\x0b\x77")  # of MP3, AAC, AC-3; raw samples may begin so, too
_SYNC_BYTES, _SYNC_PACKETS = 8_192, 4  # looked at to tell them apart
_MAX_CHUNK_BYTES = 1 << 24  # of a WAV chunk before the samples, such as a picture
_MICROPHONE_BLOCK_S = 0.1


class Interrupt:
    """Ctrl-C ends the input, but never interrupts what is computed from it; used in a ``with``."""

    def __init__(self) -> None:
        self.is_requested = self.is_waiting = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        self.is_requested = True
        if self.is_waiting:
            raise KeyboardInterrupt


class _Pipe:
    """Bytes of a pipe as soon as they arrive, also where it does not block; they end at an interrupt."""

    def __init__(self, file: BinaryIO, interrupt: Interrupt):
        self._file: Any = getattr(file, "raw", file)  # a buffered file takes a pause for the end
        self._interrupt, self._pushed_back = interrupt, b""
        self.bytes_left: int | None = None  # to the end of the samples, if that is known

    def read(self, max_bytes: int) -> bytes:
        """Return at least one byte; none at the end."""
        if self.bytes_left is not None:
            max_bytes = min(max_bytes, self.bytes_left)
        data, self._pushed_back = self._pushed_back[:max_bytes], self._pushed_back[max_bytes:]
        if max_bytes and not data:
            try:
                self._interrupt.is_waiting = True
                while not self._interrupt.is_requested and (data := self._file.read(max_bytes)) is None:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                self._interrupt.is_requested = True
            finally:
                self._interrupt.is_waiting = False
        if self.bytes_left is not None:
            self.bytes_left -= len(data or b"")
        return data or b""

    def read_exactly(self, num_bytes: int) -> bytes:
        """Return fewer bytes only at the end."""
        data = b""
        while len(data) < num_bytes and (more := self.read(num_bytes - len(data))):
            data += more
        return data

    def peek(self, num_bytes: int) -> bytes:
        """Return bytes that will be read again."""
        self._pushed_back = self.read_exactly(num_bytes)
        return self._pushed_back


def open_pipe(
    file: BinaryIO,
    interrupt: Interrupt,
    raw_format: str | None = None,
    sample_rate: int | None = None,
    channels: int | None = None,
) -> tuple[int, Iterator[Tensor]]:
    """Open a stream of raw samples, of WAV, or of encoded audio.

    Args:
        file: A binary file, which need not be seekable.
        interrupt: Ends the stream.
        raw_format: Sample format of raw samples; None: what the first bytes show, raw samples are ``s16le``.
        sample_rate: Hz of raw samples.
        channels: Interleaved channels of raw samples; None: 1.

    Returns:
        The sample rate in Hz, and blocks (s,) as soon as they arrive, channels averaged.

    Raises:
        AudioError: The stream cannot be decoded.
        ConfigError: Raw samples come without a rate, or encoded ones with a rate or channels.
    """
    pipe = _Pipe(file, interrupt)
    magic = pipe.peek(12) if raw_format is None else b""
    is_wav = magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE"
    if is_wav or magic.startswith(_MAGIC) or magic[4:8] == b"ftyp" or _is_synced(pipe, magic):
        if sample_rate is not None or channels is not None:
            raise ConfigError(
                "the stream is WAV or encoded audio, which states its sample rate and channels; omit "
                "sample_rate (--rate) and channels (--channels)."
            )
        if not is_wav:
            blocks = _blocks(pipe, None, probesize="32768", analyzeduration="500000")
            if rate := next(blocks, None):
                return rate, blocks
            raise AudioError(f"{_NAME} is empty: it holds no samples.")
        with reading_audio(_NAME):
            raw_format, sample_rate, channels = _read_wav_header(pipe)
    if sample_rate is None:
        raise ConfigError(
            "raw samples do not state their rate; give sample_rate (--rate) in Hz, or send WAV."
        )
    rate = check_rate(sample_rate, "sample_rate")
    options = {"sample_rate": str(rate), "ch_layout": f"{channels or 1}C", "probesize": "32"}
    return rate, itertools.islice(_blocks(pipe, raw_format or "s16le", **options), 1, None)


def _is_synced(pipe: _Pipe, magic: bytes) -> bool:
    """Return whether frames without a container follow one another, which raw samples do not show."""
    if not magic.startswith(_SYNC_WORDS):
        return False
    head = io.BytesIO(pipe.peek(_SYNC_BYTES))
    try:
        with reading_audio(_NAME), open_container(head) as (container, stream):
            packets = list(itertools.islice(container.demux(stream), _SYNC_PACKETS))
    except AudioError:
        return False
    ends = [packet.pos + packet.size for packet in packets[:-1] if packet.size]
    return len(packets) == _SYNC_PACKETS and ends == [packet.pos for packet in packets[1:]]


def _read_wav_header(pipe: _Pipe) -> tuple[str, int, int]:
    """Return the sample format, the sample rate and the channels, and end the pipe where the samples end."""
    form, num_bytes = b"", 0
    pipe.read_exactly(12)
    while (head := pipe.read_exactly(8))[:4] != b"data":
        size = int.from_bytes(head[4:], "little")
        if len(head) < 8 or size > _MAX_CHUNK_BYTES:
            raise AudioError("the stream ends within its WAV header, or the header is damaged.")
        body = pipe.read_exactly(size + size % 2)
        if head[:4] == b"fmt ":
            form = body
        if head[:4] == b"ds64":
            num_bytes = int.from_bytes(body[8:16], "little")
    if not num_bytes and (size := int.from_bytes(head[4:], "little")) < UNKNOWN_SIZE:
        num_bytes = size
    pipe.bytes_left = num_bytes or None
    code, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", form)
    if code == 0xFFFE:  # extensible: the format is further on
        (code,) = struct.unpack_from("<H", form, 24)
    raw_format = _WAV_FORMATS.get((code, frame_bytes / max(1, channels)))
    if raw_format is None:
        raise AudioError(
            f"the stream is WAV of format {code} with {bits} bits in {channels} channels, which is not read "
            "from a pipe; send integers of 8 to 32 bits or floats."
        )
    return raw_format, rate, channels


def _blocks(pipe: _Pipe, raw_format: str | None, **options: str) -> Iterator[Any]:
    """Yield the sample rate, then the blocks; nothing if there are no samples."""
    with reading_audio(_NAME), open_container(pipe, raw_format, **options) as (container, stream):
        frames = decoded_frames(container, stream)
        if (first := next(frames, None)) is not None:
            yield first.sample_rate
            yield from mono_blocks(itertools.chain([first], frames), _NAME, min_samples=1)
    if pipe.bytes_left == 0:
        pipe.bytes_left = None
        if pipe.read_exactly(5).lstrip(b"\0").startswith((b"RIFF", b"RF64")):
            logger.warning("%s continues with another WAV, which is not read.", _NAME)


def open_microphone(sample_rate: int, channels: int, interrupt: Interrupt) -> Iterator[Tensor]:
    """Yield blocks (s,) of the default input device until an interrupt, channels averaged.

    Raises:
        AudioError: The sample rate is out of bounds, or the device cannot be opened or read.
        ConfigError: sounddevice is not installed.
    """
    rate = check_rate(sample_rate, "sample_rate")
    hint = "On Linux, PortAudio is not in it: apt install libportaudio2."
    with importing("sounddevice and PortAudio", "a microphone", "live", hint):
        import sounddevice
    try:
        device = sounddevice.InputStream(samplerate=rate, channels=channels, dtype="float32", latency="high")
        with device:
            while not interrupt.is_requested:
                block, has_overflowed = device.read(round(_MICROPHONE_BLOCK_S * rate))
                if has_overflowed:
                    logger.warning("the model is slower than the microphone; some of the sound is lost.")
                yield torch.from_numpy(mix(block.T))
    except sounddevice.PortAudioError as error:
        raise AudioError(
            f"the microphone cannot be read with {channels} channels at sample_rate {rate} Hz ({error}); "
            "check its connection; python -m sounddevice lists devices."
        ) from error
