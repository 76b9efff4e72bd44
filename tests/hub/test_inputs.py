"""Audio as other libraries return it: with its rate, in columns, by decoders, in channels."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from m2d_hub import AudioError, ConfigError
from m2d_hub.audio import open_audio

from ..signals import noise

LEFT, RIGHT = noise(8_000).numpy(), noise(8_001).numpy()[:8_000]
STEREO = np.stack([LEFT, RIGHT])
MONO = (LEFT + RIGHT) / 2
AT_16K = torch.from_numpy(soxr.resample(MONO, 8_000, 16_000, quality="HQ"))


class Samples(SimpleNamespace):
    """torchcodec's AudioSamples: data (channels, S), sample_rate."""


class Decoder:
    """torchcodec's AudioDecoder that was asked for another rate than its file's."""

    metadata = SimpleNamespace(sample_rate=44_100, duration_seconds=1.0)

    def __init__(self):
        self.calls = 0

    def get_all_samples(self):
        self.calls += 1
        return Samples(data=torch.from_numpy(STEREO), sample_rate=8_000)

    def get_samples_played_in_range(self, start_s, stop_s):
        assert (start_s, stop_s) == (0, 0)
        return Samples(data=torch.zeros(2, 0), sample_rate=8_000)


def read(audio, array_rate=None, channels=None):
    clips = open_audio(audio, 16_000, array_rate, channels)
    return [torch.cat(list(clip.blocks())) for clip in clips]


WITH_RATE = {
    "pair": (STEREO, 8_000),
    "pair of a tensor and numpy's number": (torch.from_numpy(STEREO), np.int64(8_000)),
    "pair with samples first": (STEREO.T, 8_000),
    "pair of mono": (MONO, 8_000),
    "pair of a list": (MONO.tolist(), 8_000.0),
    "mapping": {"array": STEREO, "sampling_rate": 8_000, "path": "gone.wav"},
    "mapping of mono": {"array": MONO.tolist(), "sampling_rate": 8_000},
    "samples": Samples(data=torch.from_numpy(STEREO), sample_rate=8_000),
    "decoder": Decoder(),
}


@pytest.mark.parametrize("audio", WITH_RATE.values(), ids=WITH_RATE)
@pytest.mark.parametrize("array_rate", [None, 44_100])
def test_audio_with_a_rate_is_one_clip_at_that_rate(audio, array_rate):
    for waveform in read(audio, array_rate) + read([audio], array_rate):
        torch.testing.assert_close(waveform, AT_16K, atol=1e-5, rtol=0)


def test_a_decoder_is_decoded_when_its_turn_comes():
    decoders = [Decoder(), Decoder()]
    clips = open_audio(decoders, 16_000)
    assert [clip.expected_samples for clip in clips] == [16_000, 16_000]
    assert [decoder.calls for decoder in decoders] == [0, 0]
    list(clips[1].blocks())
    assert [decoder.calls for decoder in decoders] == [0, 1]


@pytest.mark.parametrize("key", ["bytes", "path"])
def test_rows_of_datasets_that_are_not_decoded_are_read(clips, key):
    path = clips / "tabla_stroke.flac"
    row = {"bytes": None, "path": str(path)} if key == "path" else {"bytes": path.read_bytes(), "path": None}
    assert torch.equal(read([row])[0], read(path)[0])


def columns(paths):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    yield pandas.Series(paths)
    yield pandas.DataFrame({"file": paths}, index=range(5, 5 + len(paths)))["file"]
    yield pandas.Series([Path(path) for path in paths])
    yield pandas.Series(paths, dtype="category")
    yield pandas.Index(paths)
    yield np.array(paths)
    yield np.array(paths, dtype=object)
    yield deque(paths)
    yield pytest.importorskip("pyarrow", reason="needs m2d-hub[parquet]").array(paths)


def test_columns_and_arrays_of_paths_are_lists_of_clips(clips):
    paths = [str(clips / name) for name in ("tabla_stroke.flac", "speech_it_1.wav", "bang_explosion.ogg")]
    expected = read(paths)
    for column in columns(paths):
        given = read(column)
        assert [len(waveform) for waveform in given] == [len(waveform) for waveform in expected], type(column)
        assert all(map(torch.equal, given, expected))


def test_columns_of_numbers_are_one_waveform_and_of_arrays_a_list():
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    for column in (pandas.Series(MONO), pandas.Series(list(MONO), dtype=object), deque(MONO.tolist())):
        [waveform] = read(column)
        assert waveform.tolist() == MONO.tolist()
    assert [len(w) for w in read(pandas.Series([MONO, MONO[:50], MONO[:1]]))] == [8_000, 50, 1]


def test_two_rows_are_two_clips_with_a_warning_about_channels():
    with pytest.warns(
        UserWarning, match=r"array of two rows is treated as two clips.*channels='mix'"
    ) as seen:
        given = read(STEREO)
    assert [waveform.tolist() for waveform in given] == [LEFT.tolist(), RIGHT.tolist()]
    assert len(seen) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("audio", "channels", "expected"),
    [
        (STEREO, "clips", [LEFT, RIGHT]),
        (STEREO, "mix", [MONO]),
        (torch.from_numpy(STEREO.T), "mix", [MONO]),
        ([STEREO, LEFT], "mix", [MONO, LEFT]),
        (STEREO[:1], None, [LEFT]),
        (np.stack([LEFT, RIGHT, LEFT]), None, [LEFT, RIGHT, LEFT]),
    ],
)
def test_channels_decides_what_the_rows_of_an_array_are(audio, channels, expected):
    given = read(audio, channels=channels)
    assert len(given) == len(expected)
    for waveform, own in zip(given, expected, strict=True):
        torch.testing.assert_close(waveform, torch.from_numpy(own), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("dtype", "full"), [(np.int16, 2**15), (np.int32, 2**31), (np.uint8, 2**7)])
def test_channels_of_integers_are_scaled_before_they_are_mixed(dtype, full):
    offset = full if dtype is np.uint8 else 0
    integers = (np.array([[-1.0, 0.5], [0.0, 0.5]]) * full + offset).astype(dtype)
    for audio in ((integers, 16_000), {"array": integers, "sampling_rate": 16_000}):
        assert read(audio)[0].tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ((16_000, MONO), r"is a pair \(int, ndarray\); give \(waveform, rate\)"),
        (("a.wav", 16_000), r"is a pair \(str, int\).*or a file alone"),
        ((MONO, -1), "the rate of the audio must be a positive number of Hz, got -1"),
        ((np.zeros((2, 3, 4)), 8_000), r"shape \(2, 3, 4\)"),
        ([MONO, (MONO.astype(complex), 8_000)], "input 1 has type torch.complex128"),
        ({"array": MONO}, "is a mapping of 'array'; give"),
        ({"array": MONO, "sampling_rate": "8k"}, "sampling_rate of the audio must be .*, got '8k'"),
        ({"bytes": b"no audio", "path": "a.wav"}, r"a\.wav cannot be read as audio"),
        (np.array(["a.wav", None, 0.5], dtype=object), r"a\.wav does not exist"),
        (np.array([], dtype=object), "an empty list was given"),
        ((path for path in ["a.wav"]), "type generator, which is not supported as audio"),
    ],
)
def test_objects_without_audio_are_refused_with_a_hint(audio, message):
    with pytest.raises(AudioError, match=message):
        read(audio)


def test_an_unknown_value_of_channels_is_refused():
    with pytest.raises(ConfigError, match=r"channels must be 'mix' .* or None, got 'stereo'"):
        read(STEREO, channels="stereo")


def test_a_model_takes_recordings_and_channels(tiny, tmp_path):
    expected = tiny.encode_clip(MONO, sample_rate=8_000)
    mixed = tiny.encode_clip(STEREO, sample_rate=8_000, channels="mix")
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    soundfile.write(tmp_path / "a.wav", STEREO.T, 8_000, subtype="FLOAT")
    by_library = soundfile.read(tmp_path / "a.wav", dtype="float32")
    torch.testing.assert_close(tiny.encode_clip(by_library), expected, atol=1e-5, rtol=0)
