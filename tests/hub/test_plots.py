"""The picture of a clip: what it shows, in which units."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from nnAudio.librosa_functions import mel_frequencies

import m2d_hub
from m2d_hub import look, plots
from m2d_hub.config import EncoderConfig, FrontendConfig, HeadConfig, ModelConfig
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


def panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


def bars(figure):
    return [child.get_ylabel() for axes in figure.axes for child in axes.child_axes]


def test_axes_and_colour_bars_carry_units(figure):
    assert list(panels(figure)) == ["frequency, kHz (mel scale)", "time, s"]
    assert panels(figure)["time, s"].get_xlabel() == "time, s"
    assert bars(figure) == ["power, dB re loudest", "cosine similarity of frames (160 ms each)"]
    assert figure.get_suptitle() == "tabla_stroke.flac"


def test_both_panels_share_a_time_axis_that_ends_with_the_clip(figure, model):
    upper, lower = panels(figure).values()
    assert upper.get_xlim() == lower.get_xlim()
    # 10 frames of 16 hops cover 1.49 s; frame 0 is centred on 0 s.
    np.testing.assert_allclose(lower.get_xlim(), (-0.005, 1.595))


def test_spectrogram_is_the_frontends_in_decibels(figure, model):
    shown = panels(figure)["frequency, kHz (mel scale)"].images[0].get_array()
    waveform = m2d_hub.audio.open_audio(CLIP, 16_000)[0]
    log_mel = model.frontend.log_mel(torch.cat(list(waveform.blocks()))[None])[0].numpy()
    expected = 10 * np.log10(np.exp(log_mel))
    np.testing.assert_allclose(shown, expected - expected.max(), atol=1e-3)


def test_similarity_is_the_cosine_of_the_frames(figure, model):
    shown = panels(figure)["time, s"].images[0].get_array()
    frames = model.encode_frames(CLIP).features[0].numpy()
    lengths = np.linalg.norm(frames, axis=1)
    np.testing.assert_allclose(shown, frames @ frames.T / np.outer(lengths, lengths), atol=1e-5)


@pytest.mark.parametrize("sample_rate", [16_000, 32_000])
def test_mel_centres_are_those_of_the_filters(sample_rate):
    config = FrontendConfig.for_sample_rate(sample_rate)
    expected = mel_frequencies(82, fmin=50, fmax=sample_rate / 2)[1:-1]
    np.testing.assert_allclose(plots.mel_centres_hz(config), expected)


def test_frequency_ticks_stand_at_their_bands(figure):
    axes = panels(figure)["frequency, kHz (mel scale)"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["0.25", "0.5", "1", "2", "4", "8"]
    centres = mel_frequencies(82, fmin=50, fmax=8_000)[1:-1]
    band = round(axes.get_yticks()[labels.index("1")])
    assert band == np.abs(centres - 1_000).argmin()


def test_long_clip_makes_a_picture_of_bounded_size(model, monkeypatch):
    monkeypatch.setattr(plots, "MAX_COLUMNS", 100)
    monkeypatch.setattr(plots, "MAX_FRAMES", 8)
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000)
    upper, lower = panels(plots.plot_clip(model, noise)).values()
    assert upper.images[0].get_array().shape == (80, 100)
    assert lower.images[0].get_array().shape == (8, 8)
    assert lower.get_xlim()[1] > 9.9  # seconds, all of them


def test_five_samples_make_a_picture(model, tmp_path):
    plots.plot_clip(model, np.ones(5), tmp_path / "short.png")
    assert (tmp_path / "short.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_picture_format_is_told_with_those_that_are_known(model):
    with pytest.raises(ConfigError, match=r"'clip\.bmp9': the suffix must be one of .*pdf, .*png"):
        plots.plot_clip(model, CLIP, "clip.bmp9")


def test_more_than_one_clip_is_refused(model):
    with pytest.raises(ConfigError, match="shows one clip, got 2"):
        plots.plot_clip(model, [np.ones(5), np.ones(5)])


def test_missing_matplotlib_is_told_with_the_extra_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'm2d-hub\[plots\]'"):
        plots.plot_clip(model, CLIP)


def test_a_taggers_picture_shows_its_likeliest_tags_over_time(model):
    labels = ("dog", "cash ($)", "a name of more letters than there is room for", *"defgh")
    tagger = m2d_hub.M2D(
        ModelConfig(model.config.frontend, model.config.encoder, head=HeadConfig(8), labels=labels)
    )
    torch.nn.init.normal_(tagger.head.linear.weight)
    upper, middle, lower = plots.plot_clip(tagger.eval(), CLIP).axes
    tags = tagger.classify(CLIP, top_k=plots.MOST_TAGS)[0]
    scores = tagger.classify_frames(CLIP).features[0].numpy()  # (T, classes)
    shown = [label.get_text().replace("\\$", "$") for label in middle.get_yticklabels()][::-1]
    assert len(shown) == 6
    assert all(tag.label.startswith(text.rstrip("…")) for tag, text in zip(tags, shown, strict=True))
    assert max(map(len, shown)) <= plots.MOST_LETTERS
    expected = scores[:, [tag.index for tag in tags]].T[::-1]
    np.testing.assert_allclose(middle.images[0].get_array(), expected, atol=1e-5)
    assert upper.get_xlim() == middle.get_xlim() == lower.get_xlim()
    assert middle.child_axes[0].get_ylabel() == "score" and middle.images[0].get_clim() == (0, 1)


def lightness(colours):
    """L* of CIELAB, from sRGB (IEC 61966-2-1), which no kind of colour blindness takes away."""
    rgb = np.asarray(colours)[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(np.maximum(luminance, 0.008856)) - 16


@pytest.mark.parametrize("name", [look.LEVELS, look.LIKENESS, look.SHARES])
def test_colour_maps_only_brighten_or_only_darken(name):
    import matplotlib

    steps = np.diff(lightness(matplotlib.colormaps[name](np.linspace(0, 1, 64))))
    assert (steps > -0.05).all() or (steps < 0.05).all()
    assert abs(steps.sum()) > 50


def test_letters_are_large_enough_on_a_page_of_830_dots(figure):
    assert figure.get_size_inches()[0] == look.WIDTH_INCHES
    dots_a_point = 830 / (look.WIDTH_INCHES * 72)
    texts = [
        text for axes in figure.axes for text in (*axes.get_xticklabels(), axes.xaxis.label, axes.yaxis.label)
    ]
    assert min(text.get_fontsize() for text in texts if text.get_text()) * dots_a_point >= 12


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"line\nbreak.wav", b"$x^2$.wav"])
def test_a_name_that_is_no_text_is_drawn_escaped(name, model, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        soundfile.write(file, np.zeros(4_000) + 0.1, 16_000, format="WAV")
    figure = plots.plot_clip(model, os.fsdecode(path), tmp_path / "picture.png")
    title = figure.get_suptitle()
    assert title.isprintable() and title.encode("utf-8") and "wav" in title


def test_what_can_be_read_once_is_drawn_whole(model, clips):
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.data.readinto(buffer)

    path = sorted(clips.glob("*.wav"))[0]
    piped, whole = plots.plot_clip(model, Pipe(path.read_bytes())), plots.plot_clip(model, path)
    for one, other in zip(piped.axes, whole.axes, strict=True):
        assert [image.get_array().tolist() for image in one.images] == [
            image.get_array().tolist() for image in other.images
        ]
