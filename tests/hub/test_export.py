"""Exported graphs give the numbers of the model itself, whatever the batch size and the length."""

import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.export import export_onnx, frames_module

from ..signals import noise

# Below one spectrogram window, below one model window (33,120 samples), one, a little more, several.
SHAPES = [(1, 1), (3, 150), (2, 1_000), (1, 33_120), (2, 33_281), (4, 100_000)]


@pytest.fixture
def odd(tiny_config) -> m2d_hub.M2D:
    """A model whose window of 201 frames is no whole number of 16-frame tokens."""
    torch.manual_seed(0)
    return m2d_hub.M2D(
        replace(tiny_config, encoder=replace(tiny_config.encoder, input_size=(80, 201)))
    ).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_frames_module_gives_the_features_of_forward(tiny, shape):
    with torch.no_grad():
        torch.testing.assert_close(
            frames_module(tiny)(noise(*shape)), tiny(noise(*shape)).features, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("frames", [192, 193, 200, 201, 202, 402, 403])
def test_odd_frames_of_a_window_are_left_out_as_in_forward(odd, frames):
    waveform = noise(1, 160 * (frames - 1))
    with torch.no_grad():
        torch.testing.assert_close(frames_module(odd)(waveform), odd(waveform).features, atol=1e-5, rtol=0)


def test_padding_beyond_a_clips_length_changes_nothing(tiny):
    waveform, lengths = noise(4, 70_000), torch.tensor([70_000, 100, 40_000, 33_000])
    with torch.no_grad():
        features, mask = frames_module(tiny).windowed(waveform, lengths)
        expected = tiny(waveform, lengths)
    assert torch.equal(mask, expected.mask)
    torch.testing.assert_close(features, expected.features, atol=1e-5, rtol=0)


def test_torch_export_keeps_batch_and_length_dynamic(tiny):
    dimensions = {"waveform": {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples")}}
    with torch.no_grad():
        program = torch.export.export(frames_module(tiny), (noise(2, 80_000),), dynamic_shapes=dimensions)
        for shape in SHAPES:
            torch.testing.assert_close(
                program.module()(noise(*shape)), tiny(noise(*shape)).features, atol=1e-5, rtol=0
            )


def test_onnx_runtime_gives_the_numbers_of_torch(tiny, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs m2d-hub[onnx]")
    tiny.save_pretrained(tmp_path / "tiny")
    path = tmp_path / "tiny.onnx"
    answer = CliRunner().invoke(main, ["export", str(tmp_path / "tiny"), "--onnx", str(path)])
    assert answer.exit_code == 0, answer.output
    assert "waveform at 16000 Hz to frames of 320 features" in answer.output
    assert [file.name for file in tmp_path.glob("tiny.onnx*")] == ["tiny.onnx"]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", "samples"]
    for shape in SHAPES:
        (frames,) = session.run(None, {"waveform": noise(*shape).numpy()})
        with torch.no_grad():
            expected = tiny(noise(*shape)).features
        torch.testing.assert_close(torch.from_numpy(frames), expected, atol=1e-3, rtol=0)


def test_windows_of_each_clips_own_length_are_refused(tiny):
    tiny.set_window(float("inf"))
    with pytest.raises(m2d_hub.ConfigError, match="A model without a fixed window cannot be exported"):
        frames_module(tiny)


def test_a_missing_library_is_named_with_its_extra(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(m2d_hub.ConfigError, match=r"pip install 'm2d-hub\[onnx\]'"):
        export_onnx(tiny, tmp_path / "tiny.onnx")
