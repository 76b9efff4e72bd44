"""What libsndfile does not read is read by PyAV; without it the error names the extra."""

import contextlib
import io
import logging
import sys

import numpy as np
import pytest
import torch

from m2d_hub import AudioError
from m2d_hub.audio import foreign
from m2d_hub.audio.clips import AUDIO_SUFFIXES, AudioPart, open_audio

av = pytest.importorskip("av", reason="needs m2d-hub[formats]")

KINDS = {
    "pcm.mka": ("pcm_s16le", 16_000, "matroska"),
    "m4a": ("aac", 44_100, "ipod"),
    "alac.m4a": ("alac", 44_100, "ipod"),
    "mp4": ("aac", 48_000, "mp4"),
    "mka": ("aac", 32_000, "matroska"),
    "webm": ("libopus", 48_000, "webm"),
    "wma": ("wmav2", 44_100, "asf"),
    "wv": ("wavpack", 44_100, "wv"),
    "aac": ("aac", 44_100, "adts"),
}
LOSSLESS = ["alac.m4a", "wv"]
SECONDS = 3.0


def tone(rate, seconds=SECONDS):
    time_s = np.arange(round(rate * seconds)) / rate
    return 0.3 * np.sin(2 * np.pi * 440 * time_s)


def encoded(kind, channels=(1.0, 0.5), **options):
    """A tone, as loud in each channel as is said."""
    codec, rate, container = KINDS[kind]
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 16: "hexadecagonal"}[len(channels)]
    samples = np.stack([tone(rate) * loudness for loudness in channels], axis=1).astype(np.float32)
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container, options=options) as output:
            stream = output.add_stream(codec, rate=rate, layout=layout)
            if kind == "wv":
                stream.codec_context.format = "s16p"
            elif kind not in LOSSLESS:
                stream.bit_rate = 128_000
            fifo = av.AudioFifo()
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate = rate
            resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
            for plain in resampler.resample(frame) + resampler.resample(None):
                plain.pts = None
                fifo.write(plain)
            size = stream.codec_context.frame_size or 1_024
            while (part := fifo.read(size, partial=True)) is not None:
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV cannot write {kind}: {error}")
    return file.getvalue()


def read(data, sample_rate=16_000):
    [clip] = open_audio(io.BytesIO(data), sample_rate)
    return torch.cat(list(clip.blocks()))


@pytest.mark.parametrize(
    ("kind", "num_channels"), [("pcm.mka", 6), ("m4a", 8), ("pcm.mka", 8), ("pcm.mka", 16)]
)
def test_surround_sound_is_averaged_over_all_its_channels(kind, num_channels):
    """PyAV ends the program where it is asked for the planes of eight channels or more."""
    loudness = np.linspace(0.2, 1.0, num_channels)
    loudness[3] = 0  # of low frequencies only, where it is coded
    waveform = read(encoded(kind, tuple(loudness)))[16_000:32_000]
    assert float(waveform.square().mean().sqrt()) == pytest.approx(0.3 * loudness.mean() / 2**0.5, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formats_of_phones_and_messengers_are_read(kind, caplog):
    waveform = read(encoded(kind))
    assert len(waveform) == pytest.approx(SECONDS * 16_000, abs=3_000)
    middle = waveform[16_000:32_000]
    spectrum = torch.fft.rfft(middle).abs()
    assert int(spectrum.argmax()) == pytest.approx(440, abs=1)
    assert float(middle.square().mean().sqrt()) == pytest.approx(0.3 * 0.75 / 2**0.5, rel=0.1)
    assert not caplog.records


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_samples(kind):
    rate = KINDS[kind][1]
    expected = torch.from_numpy(tone(rate).astype(np.float32))
    torch.testing.assert_close(read(encoded(kind, (1.0,)), rate), expected, atol=1e-4, rtol=0)


def test_the_length_is_told_before_reading():
    [clip] = open_audio(io.BytesIO(encoded("mp4")), 16_000)
    assert clip.expected_samples == pytest.approx(SECONDS * 16_000, abs=3_000)


def test_a_part_of_such_a_file_is_read(tmp_path):
    path = tmp_path / "a.m4a"
    path.write_bytes(encoded("alac.m4a"))
    [whole] = open_audio(path, 44_100)
    [clip] = open_audio(AudioPart(str(path), 1.0, 1.5), 44_100)
    expected = torch.cat(list(whole.blocks()))[44_100 : 44_100 * 3 // 2]
    torch.testing.assert_close(torch.cat(list(clip.blocks())), expected)


@pytest.mark.parametrize("kind", ["mka", "webm", "wv"])
def test_of_a_file_that_was_cut_off_the_rest_is_read_with_a_warning(kind, caplog):
    data = encoded(kind)
    caplog.set_level(logging.WARNING)
    waveform = read(data[: len(data) // 2])
    assert 0.5 * 16_000 < len(waveform) < 2.5 * 16_000
    assert "it may have been cut off. What is there is read." in caplog.text


def test_a_file_without_audio_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="holds no audio"):
        read(file.getvalue())


@pytest.mark.parametrize("kind", ["m4a", "webm", "wma", "wv", "aac", "mka"])
def test_damaged_files_are_read_or_refused(kind):
    data = encoded(kind)
    rng = np.random.default_rng(0)
    for _ in range(30):
        broken = bytearray(data)
        for place in rng.integers(8, len(broken), 20):
            broken[place] = rng.integers(256)
        with contextlib.suppress(AudioError):
            assert read(bytes(broken)).isfinite().all()


def test_a_playlist_is_not_followed(tmp_path):
    playlist = tmp_path / "list.m4a"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        open_audio(playlist, 16_000)


@pytest.mark.parametrize("kind", ["m4a", "webm", "wv", "aac"])
def test_without_pyav_the_error_names_the_extra(kind, monkeypatch, tmp_path):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(kind))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=rf"a\.{kind} is of a kind .* pip install 'm2d-hub\[formats\]'"):
        open_audio(path, 16_000)


def test_mp3_and_wav_are_left_to_libsndfile(clips):
    for path in clips.iterdir():
        if path.suffix in AUDIO_SUFFIXES:
            with path.open("rb") as file:
                assert foreign.kind_of(file) is None
