"""Audio is read to its real end, whatever its header says; where it ends too early, a warning tells."""

import io

import numpy as np
import pytest
import soundfile
import torch

from m2d_hub import AudioError
from m2d_hub.audio import decoding
from m2d_hub.audio.clips import AudioPart, open_audio

RATE = 16_000
WRITTEN = {
    "wav": {"format": "WAV"},
    "wav-24": {"format": "WAV", "subtype": "PCM_24"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
    "mp3-vbr": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.3},
}
LOSSLESS = ["wav", "wav-24", "w64", "aiff", "au", "caf", "flac"]


def tones(seconds, seed=0, rate=RATE):
    """Noise whose loudness rises and falls, so that frames of a variable bit rate differ."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    return (rng.uniform(-0.4, 0.4, len(time_s)) * np.sin(2 * np.pi * time_s) ** 2).astype(np.float32)


def encoded(waveform, kind, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, **WRITTEN[kind])
    return bytearray(file.getvalue())


def read(data, sample_rate=RATE, **part):
    [clip] = open_audio(io.BytesIO(bytes(data)), sample_rate)
    return torch.cat(list(clip.blocks()))


def put(data, place, value, num_bytes, order="little"):
    data[place : place + num_bytes] = value.to_bytes(num_bytes, order)
    return data


def without_info_frame(data):
    """An MP3 of 16 kHz (MPEG-2) without its first frame, which counts the others."""
    bits = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[(data[2] >> 4) - 1]
    return data[72_000 * bits // RATE + (data[2] >> 1 & 1) :]


def info_count(data):
    return max(data.find(b"Xing"), data.find(b"Info")) + 8


@pytest.mark.parametrize("kind", ["vorbis", "opus", "mp3", "mp3-vbr", "wav", "aiff"])
def test_joined_files_are_read_to_the_end_of_the_last(kind):
    files = [encoded(tones(1.2, seed), kind) for seed in range(3)]
    alone = torch.cat([read(file) for file in files])
    joined = read(b"".join(files))
    assert len(joined) == 3 * round(1.2 * RATE)
    torch.testing.assert_close(joined, alone)


@pytest.mark.parametrize("kind", ["vorbis", "mp3"])
def test_the_same_file_twice_is_read_twice(kind):
    file = encoded(tones(1), kind)
    assert len(read(file + file)) == 2 * RATE


def test_joined_files_of_other_rates_keep_their_time():
    joined = encoded(tones(1), "vorbis") + encoded(tones(1, rate=48_000), "vorbis", 48_000)
    assert len(read(joined)) == pytest.approx(2 * RATE, abs=2)


def test_tags_between_joined_files_are_passed_over():
    file = encoded(tones(1), "mp3")
    tag = b"ID3\x04\x00\x00" + bytes([0, 4, 0, 0]) + bytes(4 << 14)
    assert len(read(tag + file + b"TAG" + bytes(125) + tag + file)) == 2 * RATE


def test_an_mp3_of_variable_rate_that_counts_nothing_is_read_to_its_end():
    whole = encoded(np.concatenate([tones(1), 0 * tones(3), tones(17)]), "mp3-vbr")
    waveform = read(without_info_frame(whole))
    assert len(waveform) >= 21 * RATE
    # What an encoder adds before the first sample stays where nothing tells of it.
    torch.testing.assert_close(waveform[-RATE:].std(), read(whole)[-RATE:].std(), rtol=0.2, atol=0)


@pytest.mark.parametrize("told", [1, 30])
def test_an_mp3_that_counts_too_few_frames_is_read_to_its_end(told):
    data = encoded(tones(5), "mp3")
    assert len(read(put(data, info_count(data), told, 4, "big") + b"\0")) >= 5 * RATE


@pytest.mark.parametrize("told", [0, 1, 40_000])
def test_a_flac_that_counts_too_few_samples_is_read_to_its_end(told):
    waveform = tones(5)
    data = encoded(waveform, "flac")
    data[21] &= 0xF0
    torch.testing.assert_close(
        read(put(data, 22, told, 4, "big")), torch.from_numpy(waveform), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("wav", {4: 0, 40: 0}),
        ("wav", {4: 36, 40: 0}),
        ("wav", {4: 0xFFFFFFFF, 40: 0xFFFFFFFF}),
        ("au", {8: 0}),
        ("au", {8: 0xFFFFFFFF}),
    ],
)
def test_a_header_that_was_never_finished_does_not_hide_the_samples(kind, sizes):
    waveform, data = tones(1), encoded(tones(1), kind)
    for place, value in sizes.items():
        put(data, place, value, 4)
    torch.testing.assert_close(read(data), torch.from_numpy(waveform), atol=1e-4, rtol=0)


def test_an_rf64_from_a_pipe_is_read():
    samples = (tones(1) * 32_767).astype("<i2").tobytes()
    form = np.array([1, 1], "<u2").tobytes() + np.array([RATE, 2 * RATE], "<u4").tobytes()
    form += np.array([2, 16], "<u2").tobytes()
    unknown = b"\xff" * 4
    head = b"RF64" + unknown + b"WAVEds64" + np.uint32(28).tobytes() + bytes(28)
    head += b"fmt " + np.uint32(16).tobytes() + form + b"data" + unknown
    assert len(read(head + samples)) == RATE


@pytest.mark.parametrize("kind", [*LOSSLESS, "vorbis", "opus", "mp3"])
def test_of_a_file_that_was_cut_off_the_rest_is_read_with_a_warning(kind, caplog):
    waveform = tones(5)
    data = encoded(waveform, kind)
    part = read(data[: len(data) // 2])
    [record] = caplog.records
    assert "it may have been cut off. What is there is read." in record.getMessage()
    assert 1.5 * RATE < len(part) < 3 * RATE
    assert f"ends at {len(part) / RATE:.2f} s" in record.getMessage()
    if kind in LOSSLESS:
        torch.testing.assert_close(part, torch.from_numpy(waveform[: len(part)]), atol=1e-4, rtol=0)
        assert "before the 5.0" in record.getMessage()


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_whole_file_is_read_without_a_warning(kind, caplog):
    assert len(read(encoded(tones(3), kind))) == 3 * RATE
    assert not caplog.records


def test_a_part_of_a_cut_file_warns_only_where_the_end_is_missed(tmp_path, caplog):
    path = tmp_path / "cut.wav"
    data = encoded(tones(4), "wav")
    path.write_bytes(data[: len(data) // 2])
    for end_s, warnings in ((1.0, 0), (3.0, 1)):
        [clip] = open_audio(AudioPart(str(path), 0.5, end_s), RATE)
        assert len(torch.cat(list(clip.blocks()))) == pytest.approx((min(end_s, 2.0) - 0.5) * RATE, abs=40)
        assert len(caplog.records) == warnings


def test_a_part_beyond_the_first_of_joined_files_is_read(tmp_path):
    path = tmp_path / "joined.ogg"
    path.write_bytes(b"".join(encoded(tones(1, seed), "vorbis") for seed in range(3)))
    [clip] = open_audio(AudioPart(str(path), 1.5, 2.5), RATE)
    [whole] = open_audio(path, RATE)
    expected = torch.cat(list(whole.blocks()))[RATE * 3 // 2 : RATE * 5 // 2]
    torch.testing.assert_close(torch.cat(list(clip.blocks())), expected)


def test_a_flac_with_a_broken_middle_is_refused():
    data = encoded(tones(5), "flac")
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(data)


def test_an_empty_file_stays_empty():
    with pytest.raises(AudioError, match="is empty"):
        read(encoded(np.zeros(0, np.float32), "wav"))


def test_a_header_cannot_promise_more_than_the_file_can_hold():
    data = encoded(tones(3), "mp3")
    [clip] = open_audio(io.BytesIO(put(data, info_count(data), 268_435_455, 4, "big")), RATE)
    assert clip.expected_samples <= 64 * len(data)
    assert len(torch.cat(list(clip.blocks()))) >= 3 * RATE


@pytest.mark.parametrize(("rate", "channels"), [(8_000_000, 2), (48_000, 256)])
def test_blocks_are_bounded_by_samples_of_all_channels(monkeypatch, rate, channels):
    sizes = []
    monkeypatch.setattr(decoding, "BLOCK_VALUES", 1 << 16)
    file = io.BytesIO()
    soundfile.write(file, np.zeros((5_000 if channels > 2 else 100_000, channels)), rate, format="WAV")
    sizes = [len(block) for block in decoding.decode(file, "many")]
    assert max(sizes) * channels <= 1 << 16
    assert sum(sizes) == (5_000 if channels > 2 else 100_000)


@pytest.mark.parametrize("rate", [1, 16, 50, 99, 10_000_001, 2**31 - 1])
def test_a_rate_out_of_bounds_is_refused_by_name(rate, tmp_path):
    path = tmp_path / "odd.wav"
    path.write_bytes(put(encoded(tones(1), "wav"), 24, rate, 4))
    with pytest.raises(AudioError, match=rf"sample rate of .*odd\.wav must be .*, got {rate}; .*from 100 to"):
        open_audio(path, RATE)
    with pytest.raises(AudioError, match=rf"sample_rate must be .*, got {rate}; give a whole number"):
        open_audio(tones(1), RATE, rate)


@pytest.mark.parametrize("rate", [100, 10_000_000])
def test_the_rates_at_both_bounds_are_read(rate):
    [clip] = open_audio(np.zeros(1_000, np.float32), RATE, rate)
    assert len(torch.cat(list(clip.blocks()))) == max(1, 1_000 * RATE // rate) + (rate > RATE)


@pytest.mark.parametrize("kept", range(1, 27))
def test_a_page_of_ogg_that_breaks_off_within_its_header_is_none(kept, caplog):
    whole = encoded(tones(0.5), "vorbis")
    assert torch.equal(read(whole + whole[:kept]), read(whole))


@pytest.mark.parametrize("size", range(2, 8))
def test_a_file_of_two_or_three_bytes_of_mp3_is_refused(size):
    with pytest.raises(AudioError):
        read(encoded(tones(0.1), "mp3")[:size])


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_header_that_points_before_the_start_is_an_error_and_nothing_else_is_printed():
    damaged = encoded(tones(0.25), "aiff")
    damaged[damaged.index(b"SSND")] = 0xFF  # the block of samples has no name that is known
    with pytest.raises(AudioError):
        read(damaged)


def test_samples_that_look_like_a_frame_of_another_rate_end_no_flac_file(caplog):
    samples = np.random.default_rng(0).integers(-32768, 32768, 6000).astype(">i2")  # kept as they are: noise
    header = b"\xff\xf8\xc9\x08\x00"  # frame 0, 4,096 samples at 44.1 kHz, mono, 16 bits
    samples[5000:5003] = np.frombuffer(header + bytes([decoding.flac._crc8(header)]), ">i2")
    data = encoded(samples.astype(np.int16), "flac")
    assert header in data
    with caplog.at_level("WARNING"):
        assert len(read(data)) == 6000
    assert not caplog.records
