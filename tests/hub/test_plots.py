"""Plots of a clip: contents, units, and the shared style."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from nnAudio.librosa_functions import mel_frequencies

import m2d_hub
from m2d_hub import plots
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.errors import ConfigError

CLIP = Path(__file__).parents[1] / "data" / "tabla_stroke.flac"  # 1.49 s


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=64, depth=1)
    return m2d_hub.M2D(ModelConfig(encoder=encoder)).eval()


@pytest.fixture(scope="module")
def figure(model):
    return plots.plot_clip(model, CLIP)


def test_axes_and_colour_bars_have_units_and_a_common_time_axis(figure):
    upper, lower, *bars = figure.axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("frequency, kHz (mel scale)", "time, s")
    assert lower.get_xlabel() == "time, s" and figure.get_suptitle() == "tabla_stroke.flac"
    labels = [bar.get_ylabel() for bar in bars]
    assert labels == ["power, dB re maximum", "cosine similarity of frames (160 ms each)"]

    assert upper.get_xlim() == lower.get_xlim()
    # 10 frames of 16 hops cover 1.49 s; frame 0 is centred on 0 s.
    np.testing.assert_allclose(lower.get_xlim(), (-0.005, 1.595))


def test_spectrogram_is_the_frontends_in_decibels(figure, model):
    waveform = m2d_hub.audio.open_audio(CLIP, 16_000)[0]
    log_mel = model.frontend.log_mel(torch.cat(list(waveform.blocks()))[None])[0].numpy()
    expected = 10 * np.log10(np.exp(log_mel))
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected - expected.max(), atol=1e-3)


def test_similarity_is_the_cosine_of_frames(figure, model):
    frames = model.encode_frames(CLIP).features[0].numpy()
    lengths = np.linalg.norm(frames, axis=1)
    expected = frames @ frames.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), expected, atol=1e-5)


def test_similarity_of_two_clips_has_time_of_the_first_on_the_horizontal_axis():
    one, other = torch.eye(3)[:2], torch.eye(3)
    axes = plots.draw_cross_similarity(one, other, ("a_$1$.wav", "b.wav"), 0.16).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), np.eye(3)[:, :2], atol=1e-6)
    assert axes.get_xlabel() == r"time in a_\$1\$.wav, s" and axes.get_xlim() == (0, 0.32)


def test_frequency_ticks_are_at_their_bands(figure):
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["0.25", "0.5", "1", "2", "4", "8"]
    centres = mel_frequencies(82, fmin=50, fmax=8_000)[1:-1]
    assert round(figure.axes[0].get_yticks()[labels.index("1")]) == np.abs(centres - 1_000).argmin()


def test_size_of_the_images_is_bounded_for_a_long_clip(model, monkeypatch):
    monkeypatch.setattr(plots, "MAX_FRAMES", 8)
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000)
    lower = plots.plot_clip(model, noise).axes[1]
    assert lower.images[0].get_array().shape == (8, 8)
    assert lower.get_xlim()[1] > 9.9  # seconds, all of them


def test_wrong_arguments_are_refused(model, monkeypatch):
    with pytest.raises(ConfigError, match=r"'clip\.bmp9' cannot be saved: .*pdf.*png"):
        plots.plot_clip(model, CLIP, "clip.bmp9")
    with pytest.raises(ConfigError, match="shows one clip, got 2"):
        plots.plot_clip(model, [np.ones(5), np.ones(5)])
    monkeypatch.setattr(m2d_hub.io, "_is_installed", lambda name: name != "matplotlib")
    with pytest.raises(ConfigError, match=r"pip install 'm2d-hub\[plots\]'"):
        plots.plot_clip(model, CLIP)


def test_tags_of_a_tagger_are_shown_over_time(model):
    labels = ("dog", "cash ($)", "a label that has more characters than fit", *"defgh")
    config = ModelConfig(model.config.frontend, model.config.encoder, head=HeadConfig(8), labels=labels)
    tagger = m2d_hub.M2D(config).eval()
    torch.nn.init.normal_(tagger.head.linear.weight)
    upper, middle, lower, _, bar, _ = plots.plot_clip(tagger, CLIP).axes
    tags = tagger.classify(CLIP, top_k=plots.MAX_TAGS)[0]
    scores = tagger.classify_frames(CLIP).features[0].numpy()  # (T, classes)
    shown = [label.get_text().replace("\\$", "$") for label in middle.get_yticklabels()][::-1]
    assert all(tag.label.startswith(text.rstrip("…")) for tag, text in zip(tags, shown, strict=True))
    assert len(shown) == 6 and max(map(len, shown)) <= plots.MAX_LABEL_LENGTH
    expected = scores[:, [tag.index for tag in tags]].T[::-1]
    np.testing.assert_allclose(middle.images[0].get_array(), expected, atol=1e-5)
    assert upper.get_xlim() == middle.get_xlim() == lower.get_xlim()
    assert bar.get_ylabel() == "score" and middle.images[0].get_clim() == (0, 1)


def test_audio_that_can_be_read_once_is_plotted_completely(model, clips):
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.readinto = io.BytesIO(data).readinto

        def readable(self):
            return True

    path = clips / "speech_it_1.wav"
    piped, whole = plots.plot_clip(model, Pipe(path.read_bytes())), plots.plot_clip(model, path)
    for one, other in zip(piped.axes[:2], whole.axes[:2], strict=True):
        np.testing.assert_array_equal(one.images[0].get_array(), other.images[0].get_array())


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"$x^2$\n.wav"])
def test_file_name_that_is_not_plain_text_is_escaped_in_the_title(name, model, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        soundfile.write(file, np.zeros(4_000) + 0.1, 16_000, format="WAV")
    figure = plots.plot_clip(model, os.fsdecode(path), tmp_path / "new folder" / "plot.png")
    assert (tmp_path / "new folder" / "plot.png").read_bytes().startswith(b"\x89PNG")
    title = figure.get_suptitle()
    assert title.isprintable() and title.encode("utf-8") and "wav" in title
