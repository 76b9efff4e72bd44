"""Decoding: the samples of each format, real ends, truncated, damaged and hostile files."""

import io
import re
import struct

import numpy as np
import pytest
import soundfile
import torch

from m2d_hub import AudioError
from m2d_hub.audio import decode as decoding
from m2d_hub.audio.clips import AudioPart, open_audio, read_part

av = pytest.importorskip("av")

RATE = 16_000
WITH_SOUNDFILE = {
    "wav": {"format": "WAV"},
    "wav-24": {"format": "WAV", "subtype": "PCM_24"},
    "wav-float": {"format": "WAV", "subtype": "FLOAT"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "mp3": {"format": "MP3"},
    "mp3-vbr": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.3},
}
LOSSLESS = ["wav", "wav-24", "w64", "aiff", "au", "caf", "flac"]
WITH_PYAV = {
    "m4a": ("aac", 44_100, "ipod"),
    "alac.m4a": ("alac", 44_100, "ipod"),
    "mp4": ("aac", 48_000, "mp4"),
    "mka": ("aac", 32_000, "matroska"),
    "pcm.mka": ("pcm_s16le", 16_000, "matroska"),
    "webm": ("libopus", 48_000, "webm"),
    "opus": ("libopus", 48_000, "ogg"),
    "wma": ("wmav2", 44_100, "asf"),
    "wv": ("wavpack", 44_100, "wv"),
    "aac": ("aac", 44_100, "adts"),
}
SECONDS = 3.0


def noise(seconds, seed=0, rate=RATE):
    """Noise whose loudness rises and falls, so that frames of a variable bit rate differ."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    return (rng.uniform(-0.4, 0.4, len(time_s)) * np.sin(2 * np.pi * time_s) ** 2).astype(np.float32)


def written(waveform, kind, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, **WITH_SOUNDFILE[kind])
    return bytearray(file.getvalue())


def encoded(kind, channels=(1.0, 0.5)):
    """Return a tone of 440 Hz, with this loudness in each channel, encoded by PyAV."""
    codec, rate, container = WITH_PYAV[kind]
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 16: "hexadecagonal"}[len(channels)]
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * SECONDS)) / rate)
    samples = np.stack([tone * loudness for loudness in channels], axis=1).astype(np.float32)
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(codec, rate=rate, layout=layout)
            if kind == "wv":
                stream.codec_context.format = "s16p"
            elif kind != "alac.m4a":
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


def read(data, sample_rate=RATE):
    [clip] = open_audio(io.BytesIO(bytes(data)), sample_rate)
    return torch.cat(list(clip.blocks()))


def put(data, position, value, num_bytes, order="little"):
    data[position : position + num_bytes] = value.to_bytes(num_bytes, order)
    return data


@pytest.mark.parametrize("kind", WITH_SOUNDFILE)
def test_samples_are_those_of_libsndfile(kind, caplog):
    data = written(np.stack([noise(5), noise(5, 1)], axis=1), kind)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0].mean(axis=1)
    tolerance = 1e-5 if kind.startswith(("mp3", "vorbis")) else 0
    torch.testing.assert_close(read(data), torch.from_numpy(expected), atol=tolerance, rtol=0)
    assert not caplog.records


@pytest.mark.parametrize("kind", WITH_PYAV)
def test_formats_of_phones_and_messengers_are_read(kind, caplog):
    data = encoded(kind)
    waveform = read(data)
    [clip] = open_audio(io.BytesIO(data), RATE)
    assert len(waveform) == pytest.approx(SECONDS * RATE, abs=3_000)
    assert kind == "aac" or clip.expected_samples == pytest.approx(SECONDS * RATE, abs=3_000)
    middle = waveform[16_000:32_000]
    assert int(torch.fft.rfft(middle).abs().argmax()) == pytest.approx(440, abs=1)
    assert float(middle.square().mean().sqrt()) == pytest.approx(0.3 * 0.75 / 2**0.5, rel=0.1)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["alac.m4a", "wv"])
def test_lossless_formats_give_the_exact_samples(kind):
    rate = WITH_PYAV[kind][1]
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * SECONDS)) / rate)
    expected = torch.from_numpy(tone.astype(np.float32))
    torch.testing.assert_close(read(encoded(kind, (1.0,)), rate), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "num_channels"), [("pcm.mka", 6), ("m4a", 8), ("pcm.mka", 16)])
def test_all_channels_of_surround_sound_are_averaged(kind, num_channels):
    """PyAV crashes when it reads the planes of eight or more channels."""
    loudness = np.linspace(0.2, 1.0, num_channels)
    loudness[3] = 0  # low frequencies only, where it is coded
    waveform = read(encoded(kind, tuple(loudness)))[16_000:32_000]
    assert float(waveform.square().mean().sqrt()) == pytest.approx(0.3 * loudness.mean() / 2**0.5, rel=0.1)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_parts_of_an_mp3_equal_the_whole(mode, tmp_path):
    rate, path = 44_100, tmp_path / "a.mp3"
    options = {"format": "MP3", "bitrate_mode": mode, "compression_level": 0.9}
    soundfile.write(path, noise(10, rate=rate), rate, **options)
    [clip] = open_audio(path, rate)
    whole = torch.cat(list(clip.blocks()))
    for start in range(20_000, len(whole) - 3_000, 49_973):
        torch.testing.assert_close(read_part(clip, start, start + 3_000), whole[start : start + 3_000])


def test_a_part_of_a_file_equals_the_whole(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(encoded("opus"))
    [whole], [part] = open_audio(path, 48_000), open_audio(AudioPart(str(path), 1.0, 1.5), 48_000)
    torch.testing.assert_close(torch.cat(list(part.blocks())), torch.cat(list(whole.blocks()))[48_000:72_000])


@pytest.mark.parametrize("kind", ["vorbis", "mp3", "mp3-vbr"])
def test_joined_files_are_read_to_the_end_of_the_last(kind, caplog):
    joined = read(b"".join(written(noise(1.2, seed), kind) for seed in range(3)))
    assert len(joined) == pytest.approx(3 * 1.2 * RATE, abs=5_000)  # encoders pad each file
    assert float(joined[-RATE // 2 :].std()) > 0.05 and not caplog.records


@pytest.mark.parametrize("size", [0, 36, 0xFFFF_FFFF, 0x7FFF_FFFF])
def test_wav_without_a_length_is_read_to_its_end(size, caplog):
    data = put(put(written(noise(1), "wav"), 4, size, 4), 40, max(0, size - 36), 4)
    torch.testing.assert_close(read(data), torch.from_numpy(noise(1)), atol=1e-4, rtol=0)
    assert not caplog.records


def test_rf64_without_a_length_is_read_to_its_end():
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + bytes(28) + b"fmt \x10\0\0\0" + form
    samples = (noise(1) * 32_767).astype("<i2").tobytes()
    assert len(read(head + b"data\xff\xff\xff\xff" + samples)) == RATE


def test_a_flac_without_a_length_is_read_to_its_end():
    data = written(noise(5), "flac")
    data[21] &= 0xF0
    torch.testing.assert_close(read(put(data, 22, 0, 4)), torch.from_numpy(noise(5)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [*LOSSLESS, "mp3", "mka", "webm", "wv"])
def test_a_truncated_file_is_read_to_its_end_with_one_warning(kind, caplog):
    data = written(noise(5), kind) if kind in WITH_SOUNDFILE else encoded(kind)
    seconds = 5.0 if kind in WITH_SOUNDFILE else SECONDS
    part = read(data[: len(data) // 2])
    [record] = caplog.records
    found = re.search(r"ends at (.*) s, before the (.*) s that its header states", record.getMessage())
    assert float(found[1]) == pytest.approx(len(part) / RATE, abs=0.01)
    assert float(found[2]) == pytest.approx(seconds, abs=0.1)
    assert 0.2 * seconds * RATE < len(part) < 0.8 * seconds * RATE
    if kind in LOSSLESS:
        torch.testing.assert_close(part, torch.from_numpy(noise(5)[: len(part)]), atol=1e-4, rtol=0)


def test_a_part_of_a_truncated_file_warns_only_beyond_its_end(tmp_path, caplog):
    path = tmp_path / "cut.wav"
    data = written(noise(4), "wav")
    path.write_bytes(data[: len(data) // 2])
    for end_s, num_warnings in ((1.0, 0), (3.0, 1)):
        [clip] = open_audio(AudioPart(str(path), 0.5, end_s), RATE)
        assert len(torch.cat(list(clip.blocks()))) == pytest.approx((min(end_s, 2.0) - 0.5) * RATE, abs=40)
        assert len(caplog.records) == num_warnings


def test_a_flac_with_a_damaged_middle_is_refused():
    data = written(noise(5), "flac")
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    with pytest.raises(AudioError, match=r"damaged|cannot be read"):
        read(data)


def test_a_header_cannot_state_more_than_the_file_can_hold():
    data = written(noise(3), "mp3")
    count = max(data.find(b"Xing"), data.find(b"Info")) + 8
    [clip] = open_audio(io.BytesIO(put(data, count, 268_435_455, 4, "big")), RATE)
    assert clip.expected_samples <= 64 * len(data)
    assert len(torch.cat(list(clip.blocks()))) == pytest.approx(3 * RATE, abs=2_000)


@pytest.mark.parametrize(("rate", "channels"), [(8_000_000, 2), (48_000, 256)])
def test_blocks_are_bounded_over_all_channels(monkeypatch, rate, channels):
    monkeypatch.setattr(decoding, "BLOCK_VALUES", 1 << 16)
    num_samples = 5_000 if channels > 2 else 100_000
    file = io.BytesIO()
    soundfile.write(file, np.zeros((num_samples, channels)), rate, format="WAV")
    sizes = [len(block) for block in decoding.decode(file, "many")]
    assert max(sizes) * channels <= 1 << 16 and sum(sizes) == num_samples


@pytest.mark.parametrize(
    ("position", "value", "size"), [(22, 0xFFFF, 2), (24, 0xFFFF_FFFF, 4), (40, 2**31, 4)]
)
def test_a_wav_header_with_huge_numbers_is_refused_or_bounded(position, value, size):
    """Channels, rate, and bytes of samples."""
    data = put(written(noise(1), "wav"), position, value, size)
    try:
        assert len(read(data)) <= RATE
    except AudioError as error:
        assert "the audio" in str(error)


@pytest.mark.parametrize("rate", [99, 10_000_001])
def test_a_rate_out_of_bounds_is_refused_by_name(rate, tmp_path):
    path = tmp_path / "odd.wav"
    path.write_bytes(put(written(noise(1), "wav"), 24, rate, 4))
    with pytest.raises(AudioError, match=rf"sample rate of .*odd\.wav must be .*, got {rate}; .*from 100 to"):
        open_audio(path, RATE)


@pytest.mark.parametrize("kind", ["mp3", "flac", "vorbis", "m4a", "webm", "wma", "aac"])
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    data = written(noise(1), kind) if kind in WITH_SOUNDFILE else encoded(kind)
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(data)
        for position in rng.integers(8, len(damaged), 20):
            damaged[position] = rng.integers(256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            [clip] = open_audio(tmp_path / "damaged", RATE)
            assert all(block.isfinite().all() for block in clip.blocks())
        except AudioError as error:
            assert "damaged" in str(error)  # the file's name


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_header_that_points_before_the_start_prints_nothing():
    damaged = written(noise(0.25), "aiff")
    damaged[damaged.index(b"SSND")] = 0xFF  # the chunk of samples gets an unknown name
    with pytest.raises(AudioError):
        read(damaged)


def test_a_file_without_samples_is_refused():
    with pytest.raises(AudioError, match="is empty: it holds no samples"):
        read(written(noise(0), "wav"))


def test_a_video_without_sound_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="holds no audio"):
        read(file.getvalue())


@pytest.mark.parametrize("name", ["list.m4a", "list.m3u8", "list.ffconcat", "list.mpd"])
def test_ffmpeg_opens_no_other_file(name, tmp_path):
    """Playlists name other files; FFmpeg gets bytes, and only demuxers and no protocol that follow them."""
    (tmp_path / "secret.wav").write_bytes(written(noise(1), "wav"))
    text = {
        "list.ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
        "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    }
    playlist = tmp_path / name
    playlist.write_text(text.get(name, "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"))
    with pytest.raises(AudioError, match=rf"{re.escape(name)} cannot be read as audio"):
        open_audio(playlist, RATE)
