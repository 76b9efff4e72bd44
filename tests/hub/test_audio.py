"""Audio of any kind becomes mono waveform at the model's rate, or an error that names it."""

import io
import mmap
import os
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import pytest
import soundfile
import torch

from m2d_hub import AudioError
from m2d_hub.audio import decode as decoding
from m2d_hub.audio.clips import AudioPart, open_audio, read_part

from ..processes import ONE_THREAD


def read(audio, sample_rate=16_000, array_rate=None):
    """Waveforms of all clips of ``audio``, whole."""
    return [torch.cat(list(clip.blocks())) for clip in open_audio(audio, sample_rate, array_rate)]


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_real_clips_of_each_format_are_read_at_the_models_rate(clips, suffix):
    paths = sorted(clips.glob(f"*{suffix}"))
    assert paths
    for path in paths:
        info = soundfile.info(path)
        [waveform] = read(path)
        assert len(waveform) == pytest.approx(info.duration * 16_000, abs=1)
        assert waveform.abs().max() > 0.01


@pytest.mark.parametrize("source_rate", [8_000, 44_100, 44_101])
@pytest.mark.parametrize("num_samples", [1, 70_001])
def test_resampled_blocks_equal_librosa_on_the_whole(monkeypatch, source_rate, num_samples):
    librosa = pytest.importorskip("librosa")
    monkeypatch.setattr(decoding, "BLOCK_S", 0.37)
    waveform = noise(num_samples)
    file = io.BytesIO()
    soundfile.write(file, waveform, source_rate, format="WAV", subtype="FLOAT")
    expected = librosa.resample(waveform, orig_sr=source_rate, target_sr=16_000, res_type="soxr_hq")
    [clip] = open_audio(file, 16_000)
    assert clip.expected_samples == len(expected)
    np.testing.assert_array_equal(torch.cat(list(clip.blocks())), expected)


def test_a_file_is_embedded_without_torchaudio(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(44_100), 44_100)
    code = (
        "import sys, m2d_hub\n"
        "m2d_hub.load_model('m2d-mini', device='cpu').encode_clip(sys.argv[1])\n"
        "assert 'soxr' in sys.modules and 'torchaudio' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.wav"], check=True, env=ONE_THREAD)


@pytest.mark.parametrize(
    "samples",
    [
        np.array([-32768, 0, 16384], dtype=np.int16),
        np.array([-(2**31), 0, 2**30], dtype=np.int32),
        np.array([0, 128, 192], dtype=np.uint8),
        torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64),
        [-1, 0, 0.5],
        np.array([-1.0, 0.0, 0.5], dtype=">f4"),
        np.array([0.5, 0.0, -1.0], dtype=np.float32)[::-1],
    ],
    ids=["int16", "int32", "uint8", "float64", "list", "big-endian", "reversed"],
)
def test_samples_of_every_type_are_scaled_to_one(samples):
    assert read(samples)[0].tolist() == [-1.0, 0.0, 0.5]


def test_a_batch_and_a_ragged_list_keep_their_order(clips):
    assert [len(w) for w in read(np.zeros((3, 50), np.float32))] == [50, 50, 50]
    path = next(iter(sorted(clips.glob("*.wav"))))
    with path.open("rb") as file:
        lengths = [len(w) for w in read([noise(7), path, torch.zeros(9), [0.0, 0.1], file])]
    assert lengths[0] == 7 and lengths[2:4] == [9, 2] and lengths[1] == lengths[4]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([], "empty list"),
        ("missing.wav", "missing.wav does not exist"),
        ([noise(10), np.zeros(0, np.float32)], "input 1 is empty"),
        (np.zeros((1, 2, 3), np.float32), r"shape \(1, 2, 3\)"),
        (np.zeros((2_000, 2), np.float32), r"\(2000, 2\), which looks like \(samples, .*channels='mix'"),
        (np.zeros(5, np.int64), "torch.int64; give floats"),
        ([True, False], "torch.bool; give floats"),
        ("data:audio/wav;base64," + "A" * 5_000, "cannot be opened"),
        ("a\0b.wav", "cannot be opened"),
        (io.StringIO("text"), "is a text file; open it in binary mode"),
        (torch.zeros(5, device="meta"), "dense tensor"),
        (torch.zeros(5).to_sparse(), "dense tensor"),
        (b"RIFF", "io.BytesIO"),
        (None, "type NoneType, which is not supported as audio"),
    ],
)
def test_unsupported_inputs_are_refused_with_a_hint(audio, message):
    with pytest.raises(AudioError, match=message):
        open_audio(audio, 16_000)


@pytest.mark.parametrize("rate", [0, -1, 16, True, 16_000.5, float("nan"), float("inf"), "16k"])
def test_a_rate_must_be_a_whole_number_of_any_type(rate):
    with pytest.raises(AudioError, match="sample_rate must be a positive number of Hz, got"):
        open_audio(noise(10), 16_000, rate)
    assert len(read(noise(100), array_rate=np.float32(8_000))[0]) == 200


def test_a_file_name_that_is_not_utf8_is_read(tmp_path, clips):
    path = tmp_path / os.fsdecode(b"caf\xe9.flac")
    try:
        path.write_bytes(next(iter(sorted(clips.glob("*.flac")))).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(read(path)[0]) > 0


def test_file_objects_that_are_not_seekable_are_read(clips, tmp_path):
    path = next(iter(sorted(clips.glob("*.flac"))))
    [expected] = read(path)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(path, "a.flac")
    packed.seek(0)
    with tarfile.open(fileobj=packed, mode="r|") as tar:
        assert torch.equal(read(tar.extractfile(tar.next()))[0], expected)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert torch.equal(read(mapped)[0], expected)
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(path.read_bytes())
        assert torch.equal(read(spooled)[0], expected)


def test_files_that_hold_no_audio_are_refused_by_name(clips, tmp_path):
    (tmp_path / "notes.wav").write_text("this is not audio")
    closed = (tmp_path / "notes.wav").open("rb")
    closed.close()
    refused = {
        tmp_path / "notes.wav": r"notes\.wav cannot be read as audio",
        tmp_path: "is a folder, not an audio file",
        closed: r"notes\.wav is not a readable binary file \(.*closed",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        refused[tmp_path / "pipe.wav"] = r"pipe\.wav is a pipe or a device"
    for audio, message in refused.items():
        with pytest.raises(AudioError, match=message):
            open_audio(audio, 16_000)


@pytest.mark.parametrize("sample", [np.nan, -np.inf, 1e13, -3e38])
def test_samples_whose_power_is_not_finite_are_refused_by_name(sample, tmp_path):
    waveform = noise(100)
    waveform[50] = sample
    soundfile.write(tmp_path / "spike.wav", waveform, 16_000, subtype="FLOAT")
    for audio, name in ((tmp_path / "spike.wav", "spike.wav"), ([noise(5), waveform], "input 1")):
        with pytest.raises(AudioError, match=f"{name} holds non-finite samples .*, or some beyond 1e\\+12"):
            read(audio)


def test_a_list_of_integers_is_scaled_as_16_bits():
    samples = (noise(100) * 100).astype(np.int16)
    assert torch.equal(read([samples.tolist(), noise(5)])[0], read(samples)[0])
    with pytest.raises(AudioError, match="beyond 16 bits, which do not state their scale"):
        read([0, 40_000])


@pytest.mark.parametrize("source_rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("kind", ["part", "object", "array"])
def test_a_part_equals_the_same_samples_of_the_whole(tmp_path, source_rate, kind):
    waveform = noise(2 * source_rate)
    soundfile.write(tmp_path / "a.wav", waveform, source_rate, subtype="FLOAT")
    audio = {
        "part": AudioPart(str(tmp_path / "a.wav"), 0.5, 1.8),
        "object": io.BytesIO((tmp_path / "a.wav").read_bytes()),
        "array": waveform,
    }[kind]
    [clip] = open_audio(audio, 16_000, source_rate)
    whole = torch.cat(list(clip.blocks()))
    for start, stop in [(0, 1), (0, 900), (7_001, 12_345), (20_000, 90_000), (90_000, 90_100)]:
        part = read_part(clip, start, stop)
        torch.testing.assert_close(part, whole[start:stop], atol=1e-5, rtol=0)
