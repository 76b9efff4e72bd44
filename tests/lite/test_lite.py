"""m2d-mini without PyTorch: the numbers of m2d_hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import m2d_hub

LITE = Path(__file__).parents[2] / "lite"
WINDOW = 33_280  # samples


@pytest.fixture(scope="module")
def m2d_mini():
    """The package in the checkout."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(LITE)
        import m2d_mini

        yield m2d_mini


@pytest.fixture(scope="module")
def models():
    """m2d-mini and the tagger in m2d_hub."""
    return [m2d_hub.load_model(name, device="cpu") for name in ("m2d-mini", "m2d-mini-tags")]


def test_clips_and_tags_of_files_equal_those_of_m2d_hub(m2d_mini, models, clips):
    files = [path for path in sorted(clips.iterdir()) if path.suffix != ".md"]
    encoder, tagger = models
    assert np.abs(m2d_mini.encode_clip(files) - encoder.encode_clip(files).numpy()).max() < 1e-4
    for found, expected in zip(m2d_mini.tag(files), tagger.classify(files), strict=True):
        assert [tag.label for tag in found] == [tag.label for tag in expected]
        assert [tag.score for tag in found] == pytest.approx([tag.score for tag in expected], abs=1e-4)


@pytest.mark.parametrize("num_samples", [1, WINDOW - 1, WINDOW, 2 * WINDOW, 2 * WINDOW + 200, 5 * WINDOW])
def test_frames_of_any_length_equal_those_of_m2d_hub(num_samples, m2d_mini, models, monkeypatch):
    monkeypatch.setattr("m2d_mini.model.CHUNK_WINDOWS", 2)  # parts of two windows
    waveform = 0.1 * np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)
    expected, found = models[0].encode_frames(waveform), m2d_mini.encode_frames(waveform)
    assert found.features == pytest.approx(expected.features.numpy(), abs=1e-4)
    assert found.timestamps_s == pytest.approx(expected.timestamps_s.numpy())


def test_a_batch_of_arrays_has_masked_frames(m2d_mini, models):
    arrays = [np.ones(8_000, np.int16), np.ones(40_000, np.int16)]
    frames = m2d_mini.encode_frames(arrays, sample_rate=8_000)
    expected = models[0].encode_frames(arrays, sample_rate=8_000)
    assert np.array_equal(frames.mask, expected.mask.numpy())
    assert frames.features == pytest.approx(expected.features.numpy(), abs=1e-4)


def test_silence_has_no_tags(m2d_mini):
    assert m2d_mini.tag(np.zeros(16_000, np.float32)) == [[]]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("missing.wav", "missing.wav does not exist or is not a file"),
        (np.zeros(0, np.float32), "is empty"),
        (np.array([np.nan], np.float32), "not finite"),
        (np.zeros((1, 2, 3)), "must have 1 or 2 dimensions"),
        (np.zeros(5, np.complex64), "Samples of type complex64 are not supported"),
        (__file__, "cannot be read as audio"),
    ],
    ids=str,
)
def test_bad_audio_is_named(audio, message, m2d_mini):
    with pytest.raises(m2d_mini.AudioError, match=message):
        m2d_mini.encode_clip(audio)


@pytest.mark.slow
def test_the_wheel_tags_in_an_environment_without_torch(clips, tmp_path, models):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(LITE), "--outdir", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    file = clips / "speech_en_1.wav"
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "m2d-mini", "tag", file, "missing.wav"], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "Speech" in done.stdout and "missing.wav does not exist" in done.stderr
    program = (
        "import importlib.util, json, sys, m2d_mini; assert importlib.util.find_spec('torch') is None; "
        "print(json.dumps(m2d_mini.encode_clip(sys.argv[1])[0].tolist()))"
    )
    printed = subprocess.run([python, "-c", program, file], check=True, capture_output=True, text=True).stdout
    assert json.loads(printed) == pytest.approx(models[0].encode_clip(file)[0].tolist(), abs=1e-4)
