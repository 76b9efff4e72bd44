"""``m2d-hub stream``: raw samples, WAV and encoded audio from pipes, a microphone, and how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from click.testing import CliRunner

import m2d_hub
from m2d_hub.audio.live import Interrupt, open_pipe
from m2d_hub.cli import main as cli
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig

from ..processes import ONE_THREAD
from ..signals import noise

RATE = 16_000
CONSOLE_SCRIPT = Path(sys.executable).parent / "m2d-hub"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of one-second windows with a head of two classes."""
    folder = tmp_path_factory.mktemp("models") / "small"
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=64, depth=1)
    settings = ModelConfig(encoder=encoder, head=HeadConfig(2), labels=("dog", "rain"))
    m2d_hub.M2D(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return m2d_hub.load_model(folder, device="cpu")


@pytest.fixture
def listen(folder):
    def run(data: bytes, *options: object, status: int = 0):
        arguments = ["stream", "--model", folder, "--device", "cpu", *options]
        result = CliRunner().invoke(cli.main, [str(each) for each in arguments], input=data)
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr

    return run


def wav(waveform, rate=RATE, subtype="FLOAT", form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), rate, subtype, format=form)
    return file.getvalue()


MP3 = wav(noise(3 * RATE), subtype=None, form="MP3")
ADTS = b"".join(b"\xff\xf1\x60\x40\x17\x7f\xfc" + noise(45).numpy().tobytes() for _ in range(60))


def piped(data, kind=io.BytesIO, **options):
    """Return the sample rate and the samples that arrive through a pipe."""
    rate, blocks = open_pipe(kind(data), Interrupt(), **options)
    return rate, np.concatenate(list(blocks))


def frames_of(lines):
    return np.array([line["frame"] for line in lines])


@pytest.mark.parametrize(
    ("options", "dtype", "scale"),
    [([], "<i2", 32_768), (["--format", "s32le"], "<i4", 2**31), (["--format", "f64le"], "<f8", 1)],
    ids=str,
)
def test_frames_of_raw_samples_are_those_of_the_array(options, dtype, scale, listen, model):
    waveform = noise(3 * RATE)
    data = (waveform.double().numpy() * scale).astype(dtype).tobytes()
    lines, _ = listen(data, "-", "--rate", RATE, "--kind", "frames", *options)
    expected = model.encode_frames((np.frombuffer(data, dtype) / scale).astype(np.float32))
    np.testing.assert_allclose(frames_of(lines), expected.features[0].numpy(), atol=1e-5)
    np.testing.assert_allclose([line["time_s"] for line in lines], expected.timestamps_s, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_16"),
        ("WAVEX", "PCM_24"),
        ("WAV", "PCM_32"),
        ("RF64", "FLOAT"),
        ("WAV", "DOUBLE"),
    ],
)
def test_samples_of_wav_are_those_of_the_file(form, subtype):
    data = wav(noise(44_100, 2), 44_100, subtype, form)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    rate, waveform = piped(data)
    assert rate == 44_100
    np.testing.assert_allclose(waveform, expected.mean(axis=1), atol=1e-7)


def test_wav_without_a_length_is_read_to_its_end():
    data = wav(noise(RATE), subtype="PCM_16")
    position = data.index(b"data") + 4
    for stated in (0, 0xFFFF_FFFF, 0x7FFF_FFFF - 36):
        endless = data[:position] + struct.pack("<I", stated) + data[position + 4 :]
        np.testing.assert_array_equal(piped(endless)[1], piped(data)[1])


@pytest.mark.parametrize(
    ("rest", "warns"), [(b"LIST\x04\0\0\0abcd" * 5_000, 0), (b"RIFF\xff\xff\0\0WAVE", 1)]
)
def test_what_follows_the_samples_of_wav_is_not_sound(rest, warns, caplog):
    for form in ("WAV", "RF64"):
        data = wav(noise(RATE), subtype="PCM_16", form=form)
        assert len(piped(data + rest)[1]) == RATE
    assert caplog.text.count("continues with another WAV") == 2 * warns


@pytest.mark.parametrize("form", ["MP3", "OGG", "FLAC", "AIFF"])
def test_encoded_streams_are_decoded(form):
    data = wav(noise(2 * RATE), subtype=None, form=form)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    rate, waveform = piped(data)
    assert rate == RATE
    np.testing.assert_allclose(waveform[: 2 * RATE], expected, atol=1e-4)


def test_raw_samples_that_begin_as_encoded_frames_are_raw():
    for start in (b"\xff\xfb\x90\x64", b"\xff\xf1\x60\x40", b"\x47\x40", b"\x0b\x77"):
        data = start + (noise(RATE).numpy() * 30_000).astype("<i2").tobytes()
        assert len(piped(data, sample_rate=RATE)[1]) == len(data) // 2


def test_tags_and_embeddings_are_those_of_the_windows(listen, model):
    waveform = noise(2 * RATE).numpy()
    tags, _ = listen(waveform.tobytes(), "--rate", RATE, "--format", "f32le", "--top", 1)
    clips, _ = listen(waveform.tobytes(), "--rate", RATE, "--format", "f32le", "--kind", "clip")
    frames = model.encode_frames(waveform).features[0]
    assert [(line["start_s"], line["end_s"]) for line in clips] == [(0.0, 0.96), (0.96, 1.92), (1.92, 2.01)]
    np.testing.assert_allclose(clips[0]["embedding"], frames[:6].mean(dim=0).numpy(), atol=1e-5)
    [best] = model.classify_embeddings(frames[:6].mean(dim=0)[None], top_k=1)
    assert tags[0]["tags"][0]["label"] == best[0].label
    assert tags[0]["tags"][0]["score"] == pytest.approx(best[0].score, abs=1e-5)


def test_a_block_that_is_not_finite_is_skipped_with_a_warning(listen):
    samples = noise(5 * RATE).numpy()
    samples[RATE] = np.nan
    lines, errors = listen(samples.tobytes(), "--rate", RATE, "--format", "f32le", "--kind", "clip")
    assert lines[-1]["end_s"] > 4 and errors.count("non-finite samples") == 1 and "is skipped" in errors


def test_a_pause_of_a_pipe_that_does_not_block_is_not_its_end():
    class Pausing(io.BytesIO):
        has_paused = False

        def read(self, size=-1):
            self.has_paused = not self.has_paused
            return None if self.has_paused else super().read(size)

    assert len(piped(wav(noise(RATE)), Pausing)[1]) == RATE


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", ["--rate", "16000"], "The stream is empty"),
        (wav(noise(0)), [], "The stream is empty"),
        (b"\0" * 4_000, [], "raw samples do not state their rate"),
        (b"\0" * 4_000, ["--rate", "-16000"], "sample_rate must be a positive number of Hz, got -16000"),
        (wav(noise(9)), ["--rate", "8000"], "omit sample_rate (--rate) and channels (--channels)"),
        (wav(noise(99))[:30], [], "the stream ends within its WAV header"),
        (wav(noise(99), subtype="ULAW"), [], "WAV of format 7 with 8 bits in 1 channels"),
        (MP3[MP3.index(b"\xff") :], ["--rate", "16000"], "the stream is WAV or encoded audio"),
        (ADTS, ["--rate", "16000"], "the stream is WAV or encoded audio"),
        (b"OggS" + bytes(4_000), [], "the stream cannot be read as audio"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_streams_that_cannot_be_read_are_refused(data, options, message, listen):
    lines, errors = listen(data, *options, status=1)
    assert not lines and errors.startswith("Error: ") and message in errors


class FakeMicrophone:
    """A stand-in for sounddevice with three blocks, then Ctrl-C, or an error as when it is unplugged."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, opening_error=None, reading_error=None):
        self.asked, self.left = {}, 3
        self.opening_error, self.reading_error = opening_error, reading_error

    def InputStream(self, **asked):
        if self.opening_error:
            raise self.PortAudioError(self.opening_error)
        self.asked = asked
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asked["closed"] = True

    def read(self, frames):
        self.left -= 1
        if self.left == 0 and self.reading_error is None:
            signal.raise_signal(signal.SIGINT)
        if self.left < 0:
            raise self.PortAudioError(self.reading_error)
        return noise(frames, self.asked["channels"]).numpy(), self.left == 1


def test_a_microphone_is_recorded_until_control_c(listen, monkeypatch):
    fake = FakeMicrophone()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    lines, _ = listen(b"", "microphone", "--rate", 44_100, "--channels", 2, "--kind", "clip")
    assert [(line["start_s"], line["end_s"]) for line in lines] == [(0.0, 0.31)]
    assert (fake.asked["samplerate"], fake.asked["channels"], fake.asked["closed"]) == (44_100, 2, True)


def test_a_missing_or_unplugged_microphone_is_an_error(listen, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeMicrophone(reading_error="No such device"))
    lines, errors = listen(b"", "microphone", "--kind", "clip", status=1)
    assert [line["end_s"] for line in lines] == [0.31]  # what came before is answered
    assert "(No such device)" in errors
    monkeypatch.setitem(sys.modules, "sounddevice", FakeMicrophone("no default input device"))
    _, errors = listen(b"", "microphone", status=1)
    assert "at sample_rate 16000 Hz (no default input device)" in errors


def started(folder, *options):
    command = [CONSOLE_SCRIPT, "stream", "--model", folder, "--device", "cpu", "--rate", str(RATE), *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ONE_THREAD
    )


def test_control_c_prints_the_last_window_and_ends(folder):
    with started(folder, "--kind", "clip") as child:
        child.stdin.write(bytes(2 * RATE * 3 // 2))
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["end_s"] == 0.96
        time.sleep(0.5)  # it waits for more
        child.send_signal(signal.SIGINT)
        rest, errors = child.stdout.read(), child.stderr.read()
    assert child.returncode == 0 and not errors
    assert json.loads(rest)["end_s"] == pytest.approx(1.51)


def test_a_closed_output_ends_it_quietly(folder):
    with started(folder, "--kind", "frames") as child:
        child.stdin.write(bytes(2 * RATE * 2))
        child.stdin.flush()
        child.stdout.readline()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # it may have ended by now
            child.stdin.write(bytes(2 * RATE * 20))
            child.stdin.close()
        errors = child.stderr.read()
    assert child.returncode == 0 and not errors


@pytest.mark.slow
def test_results_come_before_the_stream_ends_in_constant_memory(folder):
    """Five minutes need at most 20 MB more than one, which allocators may round up."""
    held = []
    with started(folder) as child:
        process = psutil.Process(child.pid)
        for minutes in range(5):
            child.stdin.write((noise(60 * RATE).numpy() * 30_000).astype("<i2").tobytes())
            child.stdin.flush()
            for _ in range(60):
                line = json.loads(child.stdout.readline())
            held.append(process.memory_info().rss)
            assert line["end_s"] > 57 * (minutes + 1) - 1
        child.stdin.close()
        assert child.stdout.read()
    assert child.returncode == 0 and held[-1] - held[1] < 20e6
