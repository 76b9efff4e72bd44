"""Audio that is still arriving: raw samples, WAV and encoded streams from a pipe, and a microphone."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from m2d_hub.audio.decode import reading_audio
from m2d_hub.audio.inputs import check_rate, mix, scaled
from m2d_hub.audio.pyav import decoded_frames, mono_blocks, open_container
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.io import importing

logger = logging.getLogger(__name__)

_NAME = "the stream"
_DTYPES = {"u8": "u1", "s16le": "<i2", "s24le": "<i4", "s32le": "<i4", "f32le": "<f4", "f64le": "<f8"}
_WIDTHS = {"u8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4, "f64le": 8}  # bytes per sample
# By WAV's format (1: integers, 3: floats) and bytes per sample; 24 bits in 4 bytes are the upper ones.
_WAV_FORMATS = {
    **{(1, 1): "u8", (1, 2): "s16le", (1, 3): "s24le", (1, 4): "s32le"},
    **{(3, 4): "f32le", (3, 8): "f64le"},
}
_MAGIC_BYTES = 12
_MAGIC = (
    *(b"fLaC", b"OggS", b"ID3", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"wvpk", b"MAC ", b"#!AMR"),
    *(b"FORM", b".snd", b"caff", b"RIFX", b"riff", b"FLV\1", b"TTA1", b"MPCK", b"MP+"),
)
_SYNC_WORDS = (b"\xff", b"\x0b\x77", b"\x47")  # of MP3, AAC, AC-3, MPEG-TS; raw samples may begin so, too
_SYNC_BYTES, _SYNC_PACKETS = 8_192, 4  # looked at to tell them apart
_TS_PACKET_BYTES = 188
_READ_BYTES = 1 << 14  # also what is skipped with a sample that is not finite
_MAX_CHUNK_BYTES = 1 << 24  # of a WAV chunk before the samples, such as a picture
_ENDLESS_BYTES = 0x7FFF_0000  # a WAV length from here on was not known when it was written, as 0
_MICROPHONE_BLOCK_S = 0.1


class Interrupt:
    """Ctrl-C ends the input, but never interrupts what is computed from it; used in a ``with``."""

    def __init__(self) -> None:
        self.is_requested = self._is_waiting = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        self.is_requested = True
        if self._is_waiting:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let Ctrl-C end the wait for input."""
        try:
            self._is_waiting = True
            yield
        except KeyboardInterrupt:
            self.is_requested = True
        finally:
            self._is_waiting = False


class _Pipe:
    """Bytes of a pipe as soon as they arrive, also where it does not block; they end at an interrupt."""

    def __init__(self, file: BinaryIO, interrupt: Interrupt):
        self._file: Any = getattr(file, "raw", file)  # a buffered file takes a pause for the end
        self._interrupt, self._pushed_back = interrupt, b""

    def read(self, max_bytes: int) -> bytes:
        """Return at least one byte; none at the end."""
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back[:max_bytes], self._pushed_back[max_bytes:]
            return data
        data = b""
        with self._interrupt.waiting():
            while not self._interrupt.is_requested and (data := self._file.read(max_bytes)) is None:
                time.sleep(0.01)
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
        ConfigError: Raw samples come without a rate, or a setting contradicts the stream.
    """
    pipe = _Pipe(file, interrupt)
    if raw_format is None:
        magic = pipe.peek(_MAGIC_BYTES)
        if magic[:4] in (b"RIFF", b"RF64", b"BW64") and magic[8:] == b"WAVE":
            return _open_wav(pipe, sample_rate, channels)
        is_synced = magic.startswith(_SYNC_WORDS) and (sample_rate is None or _is_synced(pipe))
        if is_synced or magic.startswith(_MAGIC) or magic[4:8] == b"ftyp":
            if sample_rate is not None or channels is not None:
                raise ConfigError("the stream is encoded audio; omit sample_rate (--rate) and channels.")
            return _open_encoded(pipe)
    if sample_rate is None:
        raise ConfigError(
            "raw samples do not state their rate; give sample_rate (--rate) in Hz, or send WAV."
        )
    rate = check_rate(sample_rate, "sample_rate")
    return rate, _raw_blocks(pipe, raw_format or "s16le", channels or 1, None)


def _is_synced(pipe: _Pipe) -> bool:
    """Return whether frames without a container follow one another, which raw samples do not show."""
    head = pipe.peek(_SYNC_BYTES)
    if head[:1] == b"\x47":
        return set(head[::_TS_PACKET_BYTES]) == {0x47}
    try:
        with reading_audio(_NAME), open_container(io.BytesIO(head), _NAME) as (container, stream):
            packets = list(itertools.islice(container.demux(stream), _SYNC_PACKETS))
    except AudioError:
        return False
    ends = [packet.pos + packet.size for packet in packets[:-1] if packet.size]
    return len(packets) == _SYNC_PACKETS and ends == [packet.pos for packet in packets[1:]]


def _open_encoded(pipe: _Pipe) -> tuple[int, Iterator[Tensor]]:
    blocks = _encoded_blocks(pipe)
    rate = next(blocks)
    return rate, blocks


def _encoded_blocks(pipe: _Pipe) -> Iterator[Any]:
    """Yield the sample rate, then the blocks."""
    with (
        reading_audio(_NAME),
        open_container(pipe, _NAME, probesize="32768", analyzeduration="500000") as (container, stream),
    ):
        frames = decoded_frames(container, stream, _NAME)
        if (first := next(frames, None)) is None:
            raise AudioError(f"{_NAME} is empty: it holds no samples.")
        yield first.sample_rate
        yield from mono_blocks(itertools.chain([first], frames), _NAME, min_samples=1)
        if pipe.read(1):
            logger.warning("%s continues after the end of its audio; the rest is not read.", _NAME)


def _open_wav(pipe: _Pipe, sample_rate: int | None, channels: int | None) -> tuple[int, Iterator[Tensor]]:
    start = pipe.read_exactly(12)
    form = num_bytes = None
    while (head := pipe.read_exactly(8))[:4] != b"data":
        size = int.from_bytes(head[4:], "little")
        body = pipe.read_exactly(size + size % 2) if size <= _MAX_CHUNK_BYTES else b""
        start += head + body
        if len(head) < 8 or len(body) < size:
            raise AudioError("the stream ends within its WAV header, or the header is damaged.")
        if head[:4] == b"fmt " and size >= 16:
            form = body
        if head[:4] == b"ds64" and size >= 16:
            num_bytes = int.from_bytes(body[8:16], "little")
    if num_bytes is None:
        num_bytes = int.from_bytes(head[4:], "little")
        num_bytes = num_bytes if num_bytes < _ENDLESS_BYTES else 0
    if form is None:
        raise AudioError("the stream's WAV header does not state the format of its samples.")
    raw_format, rate, own_channels = _wav_format(form)
    for name, given, stated in (("sample_rate", sample_rate, rate), ("channels", channels, own_channels)):
        if given is not None and given != stated:
            raise ConfigError(f"{name} {given} was given, but the WAV stream states {stated}; omit it.")
    return rate, _raw_blocks(pipe, raw_format, own_channels, num_bytes or None)


def _wav_format(form: bytes) -> tuple[str, int, int]:
    """Return the sample format, the sample rate and the channels that a ``fmt`` chunk states."""
    code, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", form)
    if code == 0xFFFE and len(form) >= 26:  # extensible: the format is further on
        (code,) = struct.unpack_from("<H", form, 24)
    # 24 bits in 4 bytes are the upper ones.
    kind = (
        _WAV_FORMATS.get((code, frame_bytes // channels)) if channels and not frame_bytes % channels else None
    )
    if kind is None:
        raise AudioError(
            f"the stream is WAV of format {code} with {bits} bits in {channels} channels, which is not read "
            "from a pipe; send integers of 8 to 32 bits or floats."
        )
    return kind, check_rate(rate, "the WAV stream's rate"), channels


def _raw_blocks(pipe: _Pipe, raw_format: str, channels: int, num_bytes: int | None) -> Iterator[Tensor]:
    frame_bytes, data = _WIDTHS[raw_format] * channels, b""
    while more := pipe.read(_READ_BYTES if num_bytes is None else min(_READ_BYTES, num_bytes)):
        num_bytes = None if num_bytes is None else num_bytes - len(more)
        data += more
        whole = len(data) - len(data) % frame_bytes
        if whole:
            yield torch.from_numpy(_raw_samples(data[:whole], raw_format, channels))
        data = data[whole:]
        if num_bytes == 0:
            _check_rest(pipe)
            break
    if data:
        logger.warning(
            "%s ends within a sample: its last %d bytes are skipped (a sample of %s in %d channels has %d).",
            *(_NAME, len(data), raw_format, channels, frame_bytes),
        )


def _raw_samples(data: bytes, raw_format: str, channels: int) -> np.ndarray:
    if raw_format == "s24le":  # the upper bytes of 32 bits
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data = padded.tobytes()
    samples = torch.from_numpy(np.frombuffer(bytearray(data), _DTYPES[raw_format]))
    return mix(scaled(samples, _NAME).numpy().reshape(-1, channels).T)


def _check_rest(pipe: _Pipe) -> None:
    """Warn of what follows the samples of WAV, unless it is a chunk of metadata."""
    rest = pipe.read_exactly(5).lstrip(b"\0")[:4]
    if rest and (rest in (b"RIFF", b"RF64") or not rest.decode("latin-1").replace(" ", "").isalnum()):
        logger.warning("%s continues after the end that its header states; the rest is not read.", _NAME)


def open_microphone(sample_rate: int, channels: int, interrupt: Interrupt) -> Iterator[Tensor]:
    """Yield blocks (s,) of the default input device until an interrupt, channels averaged.

    Raises:
        AudioError: The sample rate is out of bounds, or the device fails while it records.
        ConfigError: sounddevice is not installed, or there is no such device.
    """
    rate = check_rate(sample_rate, "sample_rate")
    hint = "On Linux, PortAudio is not in it: apt install libportaudio2."
    with importing("sounddevice and PortAudio", "a microphone", "live", hint):
        import sounddevice
    try:
        device = sounddevice.InputStream(samplerate=rate, channels=channels, dtype="float32", latency="high")
    except sounddevice.PortAudioError as error:
        raise ConfigError(
            f"the microphone cannot be opened with {channels} channels at sample_rate {rate} Hz ({error}); "
            "python -m sounddevice lists devices."
        ) from error
    try:
        with device:
            while not interrupt.is_requested:
                block, has_overflowed = device.read(round(_MICROPHONE_BLOCK_S * rate))
                if has_overflowed:
                    logger.warning("the model is slower than the microphone; some of the sound is lost.")
                yield torch.from_numpy(mix(block.T))
    except sounddevice.PortAudioError as error:
        raise AudioError(f"the microphone stopped ({error}); check its connection.") from error
