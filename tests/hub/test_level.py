"""Models with normalised levels and attention limited in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import m2d_hub
from m2d_hub.export import frames_module

from ..signals import noise


@pytest.fixture
def local(tiny_config) -> m2d_hub.M2D:
    """A small model with both, whose biases in time are not zero."""
    torch.manual_seed(0)
    config = replace(
        tiny_config,
        frontend=replace(tiny_config.frontend, range_db=50.0, mean=-3.0, std=3.0),
        encoder=replace(tiny_config.encoder, time_reach=1),
    )
    model = m2d_hub.M2D(config).eval()
    torch.nn.init.normal_(model.encoder.time_bias)
    return model


def test_a_clip_has_the_same_embedding_at_any_level(local):
    clip = torch.cat([noise(40_000), 0.1 * noise(30_000)])
    levels = [10 ** (decibels / 20) * clip for decibels in (0, -10, -25)]
    loud, *quiet = local.encode_clip(levels)
    assert torch.cosine_similarity(loud, torch.stack(quiet)).min() > 0.9999


def test_silence_is_not_amplified(local):
    """The gain is limited: 20 dB below the lowest level, a window is almost silent."""
    log_mel = local.frontend.levelled(
        local.frontend.log_mel(torch.stack([noise(32_000), 1e-4 * noise(32_000)]))
    )
    assert log_mel[0].mean() == pytest.approx(-0.3, abs=0.2)  # near the mean power, which is 0
    assert log_mel[1].mean() < -5
    digital = local.frontend.levelled(local.frontend.log_mel(torch.zeros(1, 32_000)))
    assert digital.min() == digital.max()


def test_values_are_limited_to_the_range_below_the_level(local):
    tone = torch.sin(torch.arange(32_000) * 0.4)
    log_mel = local.frontend.levelled(local.frontend.log_mel(tone[None]))
    lowest_db = 10 / torch.log(torch.tensor(10.0)) * log_mel.min()
    assert lowest_db == pytest.approx(-50, abs=0.5)


@pytest.mark.parametrize("num_samples", [100, 20_000, 33_120, 70_000])
def test_every_way_to_encode_gives_the_same_frames(local, num_samples):
    waveform = noise(num_samples)
    expected = local.encode_frames(waveform).features
    others = local.encode_frames([noise(50_000), waveform], batch_size=3)
    stream = local.stream()
    pushed = [stream.push(block).features for block in waveform.split(1_000)]
    with torch.no_grad():
        results = [
            others.features[1:, : expected.shape[1]],
            local(waveform[None]).features,
            frames_module(local)(waveform[None]),
            frames_module(local).windowed(
                torch.nn.functional.pad(waveform[None], (0, 9_000)), torch.tensor([num_samples])
            )[0],
            torch.cat([*pushed, stream.finish().features], dim=1),
        ]
    for features in results:
        torch.testing.assert_close(features, expected, atol=2e-5, rtol=0)


def test_the_configuration_is_saved_with_the_weights(local, tmp_path):
    local.save_pretrained(tmp_path / "local")
    loaded = m2d_hub.load_model(tmp_path / "local", device="cpu")
    assert (loaded.config.frontend.range_db, loaded.config.encoder.time_reach) == (50.0, 1)
    clip = noise(20_000)
    assert torch.equal(loaded.encode_clip(clip), local.encode_clip(clip))


def test_a_frame_depends_only_on_frames_within_reach_of_all_blocks(local):
    """Two blocks with a reach of one: two frames on either side."""
    log_mel = noise(1, 1, 80, 208)
    changed = log_mel.clone()
    changed[..., 96:112] += 1  # frame 6, of 16 spectrogram frames each
    with torch.no_grad():
        difference = (local.encoder.frames(log_mel) - local.encoder.frames(changed)).abs().amax(dim=-1)[0]
    assert (difference > 1e-4).nonzero()[:, 0].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(("name", "value"), [("range_db", 0.5), ("range_db", "50")])
def test_ranges_out_of_bounds_are_refused(name, value):
    with pytest.raises(m2d_hub.ConfigError, match="range_db must be"):
        m2d_hub.FrontendConfig(**{name: value})
