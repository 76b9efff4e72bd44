"""Exported graphs give the numbers of the model itself, whatever the batch size and the length."""

import json
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
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


def test_exported_frames_equal_those_of_forward(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    path = tmp_path / "tiny.onnx"
    answer = CliRunner().invoke(main, ["export", str(tmp_path / "tiny"), "--onnx", str(path)])
    assert answer.exit_code == 0, answer.output
    assert "waveform at 16000 Hz to frames." in answer.output
    assert [file.name for file in tmp_path.glob("tiny.onnx*")] == ["tiny.onnx"]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", "samples"]
    for shape in SHAPES:
        (frames,) = session.run(None, {"waveform": noise(*shape).numpy()})
        with torch.no_grad():
            expected = tiny(noise(*shape)).features
        torch.testing.assert_close(torch.from_numpy(frames), expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def tagger():
    """A model with a head, and clips of different lengths with their lengths."""
    clips = [noise(length) for length in (70_000, 100, 40_000)]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    model = m2d_hub.load_model("m2d-mini-tags", device="cpu")
    return model, clips, {"waveform": batch.numpy(), "lengths": np.array([len(clip) for clip in clips])}


def test_exported_frames_clips_and_scores_equal_those_of_the_model(tagger, tmp_path):
    model, clips, inputs = tagger
    model.export_onnx(tmp_path / "tagger.onnx", outputs=("scores", "clip", "frames", "mask"))
    session = onnxruntime.InferenceSession(tmp_path / "tagger.onnx")
    scores, clip, frames, mask = session.run(None, inputs)
    expected = model.encode_frames(clips)
    assert np.array_equal(mask, expected.mask.numpy())
    assert frames == pytest.approx(expected.features.numpy(), abs=1e-4)
    assert clip == pytest.approx(model.encode_clip(clips).numpy(), abs=1e-4)
    for row, tags in zip(scores, model.classify(clips, top_k=44), strict=True):
        assert [row[tag.index] for tag in tags] == pytest.approx([tag.score for tag in tags], abs=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == model.labels
    assert (metadata["sample_rate"], metadata["window_s"]) == ("16000", "2.08")
    assert metadata["license"] == "Apache-2.0"


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "min_cosine"), [("float16", 0.9999), ("int8", 0.99)])
def test_smaller_precisions_are_smaller_files_with_similar_clips(dtype, min_cosine, tagger, tmp_path):
    model, clips, inputs = tagger
    model.export_onnx(tmp_path / "small.onnx", outputs=("clip",), dtype=dtype)
    assert (tmp_path / "small.onnx").stat().st_size < 4_500_000  # float32: 6.9 MB
    (clip,) = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, inputs)
    assert torch.cosine_similarity(torch.from_numpy(clip), model.encode_clip(clips)).min() > min_cosine


@pytest.mark.slow
@pytest.mark.parametrize("audio_blocks", [0, 2])
def test_exported_projections_ignore_padding(audio_blocks, tagger, tiny_config, tmp_path):
    _, clips, inputs = tagger
    width = tiny_config.encoder.embed_dim
    clap = m2d_hub.ClapConfig(
        text_encoder="tiny", text_dim=width, dim=width, audio_blocks=audio_blocks, text_projection="none"
    )
    torch.manual_seed(0)
    model = m2d_hub.M2D(replace(tiny_config, clap=clap)).eval()
    model.export_onnx(tmp_path / "clap.onnx", outputs=("text_space",))
    (projected,) = onnxruntime.InferenceSession(tmp_path / "clap.onnx").run(None, inputs)
    assert projected == pytest.approx(model.encode_audio_text_space(clips).numpy(), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ("clip", "tags")}, "outputs must be one of frames, mask, clip, scores, text_space"),
        ({"outputs": ("scores",)}, "has no classification head"),
        ({"dtype": "int4"}, "dtype must be one of float32, float16, int8"),
    ],
)
def test_outputs_that_a_model_does_not_have_are_refused(options, message, tiny, tmp_path):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        tiny.export_onnx(tmp_path / "tiny.onnx", **options)


def test_windows_of_each_clips_own_length_are_refused(tiny):
    tiny.set_window(float("inf"))
    with pytest.raises(m2d_hub.ConfigError, match="A model without a fixed window cannot be exported"):
        frames_module(tiny)


def test_a_missing_library_is_named_with_its_extra(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(m2d_hub.ConfigError, match=r"pip install 'm2d-hub\[onnx\]'"):
        export_onnx(tiny, tmp_path / "tiny.onnx")
