"""Streams: what arrives block by block gives the frames and tags of the whole, each as soon as it can."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch

import m2d_hub

from ..signals import noise

RATE = 16_000
TOLERANCE = 1e-5  # the contract's, against encode_frames of the whole


def frames_of(stream, waveform, sizes):
    """All that a stream gives for a waveform pushed in blocks of these sizes, in turn."""
    found, place, turn = [], 0, 0
    while place < len(waveform):
        found.append(stream.push(waveform[place : place + sizes[turn % len(sizes)]]))
        place += sizes[turn % len(sizes)]
        turn += 1
    return [*found, stream.finish()]


def joined(found):
    return torch.cat([one.features for one in found], dim=1), torch.cat([one.timestamps_s for one in found])


@pytest.mark.parametrize("seconds", [0.001, 0.02, 1.0, 2.08, 4.16, 7.3])
@pytest.mark.parametrize("sizes", [[160], [1, 777, 40_000], [10**6]], ids=str)
def test_concatenated_blocks_equal_the_frames_of_the_whole(seconds, sizes, tiny):
    waveform = noise(round(seconds * RATE))
    whole = tiny.encode_frames(waveform)
    features, times = joined(frames_of(tiny.stream(), waveform, sizes))
    torch.testing.assert_close(features, whole.features, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(times, whole.timestamps_s, atol=1e-9, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_a_stream_of_another_rate_is_resampled_as_its_file(rate, tiny, tmp_path):
    waveform = noise(5 * rate)
    soundfile.write(tmp_path / "a.wav", waveform.numpy(), rate, subtype="FLOAT")
    features, _ = joined(frames_of(tiny.stream(sample_rate=rate), waveform, [1_000, 3, 50_000]))
    whole = tiny.encode_frames(tmp_path / "a.wav").features
    torch.testing.assert_close(features, whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("window_s", [1.0, 2.0])
def test_windows_that_are_not_a_multiple_of_the_patch_drop_the_same_frames(window_s, tiny):
    tiny.set_window(window_s)
    waveform = noise(5 * RATE)
    whole = tiny.encode_frames(waveform)
    features, times = joined(frames_of(tiny.stream(hop_s=window_s), waveform, [5_000]))
    torch.testing.assert_close(features, whole.features, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(times, whole.timestamps_s, atol=1e-9, rtol=0)


def test_frames_come_as_soon_as_their_window_is_whole(tiny):
    """The last of 208 frames is centred on sample 33,120, and has 200 samples more."""
    stream, waveform = tiny.stream(), noise(5 * RATE)
    needed = 207 * 160 + 200
    assert stream.push(waveform[: needed - 160]).features.shape == (1, 0, tiny.frame_dim)
    frames = stream.push(waveform[needed - 160 : needed + 160])
    assert frames.features.shape == (1, 13, tiny.frame_dim) and frames.mask.shape == (1, 13)
    assert len(stream.windows) == 1
    stream.push(waveform[:1])
    assert stream.windows == []


@pytest.mark.parametrize("hop_s", [0.16, 0.64, 1.12])
@pytest.mark.parametrize("seconds", [1.5, 2.08, 3.0, 6.4])
def test_overlapping_windows_return_each_frame_once(hop_s, seconds, tiny):
    """Each new frame is that of the window which ends soonest after it: the whole's with that beginning."""
    waveform = noise(round(seconds * RATE))
    stream = tiny.stream(hop_s=hop_s)
    assert stream.hop_s == pytest.approx(hop_s)
    starts = []
    for place in range(0, len(waveform), 1_000):
        stream.push(waveform[place : place + 1_000])
        starts += [window.start_s for window in stream.windows]
    last = stream.finish()
    starts += [window.start_s for window in stream.windows]
    np.testing.assert_allclose(starts, hop_s * np.arange(len(starts)), atol=1e-9)
    assert len(starts) == 1 + max(0, math.ceil(round((seconds + 0.01 - 2.08) / hop_s, 6)))
    _, times = joined(frames_of(tiny.stream(hop_s=hop_s), waveform, [1_000]))
    torch.testing.assert_close(times, tiny.encode_frames(waveform).timestamps_s, atol=1e-9, rtol=0)
    assert last.features.isfinite().all()


def test_windows_are_tagged_as_clips_are(tiny):
    tiny.set_head(3, labels=["dog", "cat", "rain"])
    torch.nn.init.normal_(tiny.head.linear.weight)
    waveform = noise(round(2.07 * RATE))  # 208 frames: one window
    stream = tiny.stream()
    assert not len(stream.push(waveform).timestamps_s) and stream.classify() == []
    stream.finish()
    [found], [expected] = stream.classify(top_k=2), tiny.classify(waveform, top_k=2)
    assert [tag.label for tag in found] == [tag.label for tag in expected]
    assert [tag.score for tag in found] == pytest.approx([tag.score for tag in expected], abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_audio_is_skipped(value, tiny):
    waveform = noise(3 * RATE)
    stream = tiny.stream()
    found = [stream.push(waveform[:20_000])]
    with pytest.raises(m2d_hub.AudioError, match=r"block at sample 20000 of the stream holds non-finite"):
        stream.push([0.0, value])
    with pytest.raises(m2d_hub.AudioError, match=r"shape \(2, 100\)"):
        stream.push(noise(2, 100))
    found += [stream.push(waveform[20_000:]), stream.finish()]
    torch.testing.assert_close(
        joined(found)[0], tiny.encode_frames(waveform).features, atol=TOLERANCE, rtol=0
    )


def test_an_empty_or_finished_stream_is_refused(tiny):
    stream = tiny.stream()
    assert stream.push([]).features.shape == (1, 0, tiny.frame_dim)
    with pytest.raises(m2d_hub.AudioError, match="The stream is empty; push samples"):
        stream.finish()
    for again in (lambda: stream.push(noise(1)), stream.finish):
        with pytest.raises(m2d_hub.ConfigError, match=r"is finished; call model\.stream\(\)"):
            again()


@pytest.mark.parametrize("hop_s", [0, -1.0, 2.2, math.nan, math.inf, "1", True])
def test_a_wrong_hop_is_refused(hop_s, tiny):
    with pytest.raises(m2d_hub.ConfigError, match=r"hop_s must be .* the window of 2\.08 seconds, got"):
        tiny.stream(hop_s=hop_s)


def test_a_model_without_a_window_is_refused(tiny):
    tiny.set_window(math.inf)
    with pytest.raises(m2d_hub.ConfigError, match="A stream needs a model with a fixed window"):
        tiny.stream()


def test_memory_does_not_grow_with_the_stream(tiny):
    """Samples that wait are less than a window's, after a minute as after ten seconds."""
    stream, held = tiny.stream(sample_rate=44_100, hop_s=0.48), []
    for second in range(60):
        stream.push(noise(44_100))
        if second in (10, 59):
            held.append(sum(map(len, stream._framer._pending)))
    assert max(held) < tiny.config.frontend.span(208)
