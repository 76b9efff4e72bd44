"""Augmentation of waveforms in pre-training."""

from __future__ import annotations

import m2d_training
import numpy as np
import pytest
import torch
from m2d_training import PretrainConfig
from m2d_training.data.manifest import read_manifest
from m2d_training.data.sampling import SampleKey
from m2d_training.pretraining.augment import augmented, overlapped
from m2d_training.pretraining.config import AugmentConfig, OfflineConfig
from m2d_training.pretraining.dataset import PretrainDataset

from m2d_hub.errors import ConfigError

from ..signals import write_tones

RATE = 16_000
NOTHING = {"overlap": 0.0, "filter": 0.0, "reverberation": 0.0, "noise": 0.0, "silence": 0.0, "gain_db": 0.0}


def noise(seed=0, num_samples=RATE):
    return np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)


def levels_db(waveform):
    """Mean power below 2 kHz and above 7.9 kHz."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    edges = len(power) * 2 // 8, len(power) * 79 // 80
    return 10 * np.log10(power[: edges[0]].mean()), 10 * np.log10(power[edges[1] :].mean())


def test_each_change_occurs_with_its_share_and_no_change_leaves_the_clip():
    clip, rng = noise(), np.random.default_rng(1)
    same, is_silent = augmented(clip, AugmentConfig(**NOTHING), RATE, rng)
    assert np.array_equal(same, clip) and not is_silent
    silence, is_silent = augmented(clip, AugmentConfig(**NOTHING | {"silence": 1.0}), RATE, rng)
    assert is_silent and 20 * np.log10(silence.std()) < -79
    quiet, _ = augmented(clip, AugmentConfig(**NOTHING | {"gain_db": 40.0}), RATE, rng)
    assert np.allclose(quiet / quiet.std(), clip / clip.std(), atol=1e-5)
    assert 0.0099 < quiet.std() / clip.std() < 1
    for name in ("filter", "reverberation", "noise"):
        changed, _ = augmented(clip, AugmentConfig(**NOTHING | {name: 1.0}), RATE, rng)
        assert changed.shape == clip.shape and changed.dtype == np.float32
        assert not np.allclose(changed, clip, atol=0.01)
        assert changed.std() == pytest.approx(clip.std(), rel=0.2)


def test_filters_limit_the_band_of_about_half_of_the_clips():
    config, rng = AugmentConfig(**NOTHING | {"filter": 1.0}), np.random.default_rng(0)
    found = [levels_db(augmented(noise(), config, RATE, rng)[0]) for _ in range(60)]
    limited = [low - high > 15 for low, high in found]
    assert 15 < sum(limited) < 45


def test_the_second_clip_of_an_overlap_is_not_louder_than_the_first():
    first, second = noise(1), 100 * noise(2)
    mixed = overlapped(first, second, np.random.default_rng(0)) - first
    assert 10 ** (-12.1 / 20) < mixed.std() / first.std() < 1.01


@pytest.fixture
def tones(tmp_path):
    return read_manifest(write_tones(tmp_path, ["train"] * 6, samples=4 * RATE))


def dataset(tones, **augment):
    config = PretrainConfig(
        input_size=(80, 208),
        embed_dim=64,
        depth=1,
        offline=OfflineConfig(kind="labels", dim=2),
        mean=-7.0,
        std=4.0,
        augment=AugmentConfig(**NOTHING | augment) if augment else None,
    )
    return PretrainDataset(config, tones, classes=("a", "b"))


def test_an_overlap_has_the_labels_of_both_clips_and_silence_has_none(tones):
    plain, both = dataset(tones), dataset(tones, overlap=1.0)
    keys = [SampleKey(index=index % 6, epoch=0, position=index) for index in range(30)]
    targets = np.stack([both[key].target for key in keys])
    first = np.stack([plain[key].target for key in keys])
    assert (targets >= first).all()
    assert 5 < (targets.sum(axis=1) == 2).sum() < 25  # of two classes, half of the pairs differ
    assert all(dataset(tones, silence=1.0)[key].target.sum() == 0 for key in keys[:3])


def test_a_sample_depends_on_its_key_alone_and_keeps_its_mask(tones):
    changed, plain = dataset(tones, noise=1.0, overlap=0.5), dataset(tones)
    key = SampleKey(index=2, epoch=1, position=5)
    again, once, unchanged = changed[key], changed[key], plain[key]
    assert np.array_equal(once.values, again.values)
    assert not np.array_equal(once.values, unchanged.values)
    assert np.array_equal(once.visible_ids, unchanged.visible_ids)


def test_stored_features_and_background_noise_exclude_augmentation_and_levels():
    with pytest.raises(ConfigError, match="augment changes what a clip contains"):
        PretrainConfig(augment=AugmentConfig(), offline=OfflineConfig(kind="features", dim=3))
    with pytest.raises(ConfigError, match="range_db and noise_ratio exclude each other"):
        PretrainConfig(range_db=50.0, noise_ratio=0.2)
    with pytest.raises(ConfigError, match="time_reach limits the encoder of msm-mae only"):
        PretrainConfig(time_reach=1)


def test_a_patch_is_encoded_from_the_patches_within_reach_in_pre_training_too():
    """Patches of a subset attend by their place in time, as in the whole window."""
    config = PretrainConfig(
        method="msm-mae", input_size=(80, 208), patch_size=(16, 16), embed_dim=64, depth=2, time_reach=1
    )
    torch.manual_seed(0)
    encoder = m2d_training.build_pretrainer(config).encoder
    torch.nn.init.normal_(encoder.time_bias)
    tokens = torch.randn(1, 65, 64)
    times = torch.arange(13).repeat(5)
    near = torch.nonzero((times >= 4) & (times <= 8))[:, 0][None]
    with torch.no_grad():
        whole = encoder.encode(tokens)[:, 1:]
        part = encoder.encode(tokens[:, near[0]], ids=near)[:, 1:]
    centre = times[near[0]] == 6
    torch.testing.assert_close(part[:, centre], whole[:, times == 6], atol=1e-5, rtol=0)
    assert not torch.allclose(part[:, times[near[0]] == 4], whole[:, times == 4], atol=1e-3)
