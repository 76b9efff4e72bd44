"""Events in scores over time, and in audio."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import m2d_hub
from m2d_hub.detect import Detection, Event, EventFinder

from ..signals import noise

FRAME_S = 0.1
LABELS = ["Bell", "Rain"]


def find(scores, block=1_000, **settings):
    """Events in scores (T, C), given in blocks, as (label, first frame, frame after the last, score)."""
    scores = np.asarray(scores, np.float32)
    finder = EventFinder(LABELS[: scores.shape[1]], Detection(**settings), FRAME_S)
    for start in range(0, len(scores), block):
        finder.push(scores[start : start + block])
    events = finder.finish(np.arange(len(scores)) * FRAME_S, len(scores) * FRAME_S)
    frames = [(round(event.start_s / FRAME_S), round(event.end_s / FRAME_S)) for event in events]
    return [(event.label, *pair, round(event.score, 3)) for event, pair in zip(events, frames, strict=True)]


def bell(*scores):
    return [[score] for score in scores]


def test_an_event_reaches_the_threshold_and_extends_to_the_offset_threshold():
    scores = bell(0.1, 0.3, 0.6, 0.8, 0.3, 0.2, 0.3, 0.3, 0.1)
    assert find(scores, threshold=0.5) == [("Bell", 1, 5, 0.8)]  # offset 0.25; frames 6 and 7 never reach 0.5
    assert find(scores, threshold=0.5, offset_threshold=0.5) == [("Bell", 2, 4, 0.8)]


def test_events_closer_than_the_longest_gap_are_joined_before_short_ones_are_dropped():
    scores = bell(0.9, 0, 0.7, 0, 0, 0, 0.8)
    assert find(scores) == [("Bell", 0, 1, 0.9), ("Bell", 2, 3, 0.7), ("Bell", 6, 7, 0.8)]
    assert find(scores, max_gap_s=0.1, min_duration_s=0.2) == [("Bell", 0, 3, 0.9)]


def test_the_median_filter_removes_single_frames_and_fills_single_gaps():
    scores = bell(0, 0.9, 0, 0, 0.8, 0.8, 0, 0.8, 0.8, 0)
    assert find(scores, median_s=0.3) == [("Bell", 4, 9, 0.8)]


def test_each_class_has_its_own_threshold_and_classes_without_one_are_ignored():
    scores = [[0.4, 0.9], [0.4, 0.4]]
    assert find(scores, threshold={"Bell": 0.3}) == [("Bell", 0, 2, 0.4)]
    assert find(scores, threshold={"Bell": 0.5, "Rain": 0.5}) == [("Rain", 0, 2, 0.9)]


def test_events_do_not_depend_on_the_blocks_in_which_scores_arrive():
    scores = np.random.default_rng(0).random((200, 2))
    settings = {"median_s": 0.3, "max_gap_s": 0.2, "min_duration_s": 0.2, "offset_threshold": 0.4}
    whole = find(scores, **settings)
    assert len(whole) > 10
    assert find(scores, block=1, **settings) == find(scores, block=7, **settings) == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold must be a finite number from 0 to 1"),
        ({"threshold": {"Dog": 0.5}}, "'Dog', which is not a label of the model"),
        ({"threshold": 0.3, "offset_threshold": 0.4}, "offset_threshold is higher than threshold for 'Bell'"),
        ({"max_gap_s": -1}, "max_gap_s must be a finite number of at least 0 seconds"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        find(bell(0.5), **settings)


@pytest.fixture
def detector(tiny):
    """A model with a head whose only class follows the level of a frame."""
    tiny.set_head(1, labels=["Loud"])
    quiet, loud = (tiny.encode_frames(level * noise(32_000)).features[0].mean(0) for level in (0.01, 1.0))
    direction = tiny.head.clip_input(loud) - tiny.head.clip_input(quiet)
    with torch.no_grad():
        tiny.head.norm.running_mean.copy_((tiny.head.clip_input(loud) + tiny.head.clip_input(quiet)) / 2)
        tiny.head.linear.weight.copy_(20 * direction[None] / direction.square().sum())
    return tiny.eval()


def test_detected_events_are_the_runs_of_the_scores_of_frames(detector):
    waveform = torch.cat([0.01 * noise(40_000), noise(24_000), 0.01 * noise(50_000)])
    [events] = detector.detect(waveform)
    [event] = events
    frames = detector.classify_frames(waveform)
    active = frames.timestamps_s[frames.features[0, :, 0] >= 0.25]
    half = detector.frame_hop_s / 2
    assert event.label == "Loud"
    assert event.start_s == pytest.approx(float(active[0]) - half, abs=0.01)
    assert event.end_s == pytest.approx(float(active[-1]) + half, abs=0.01)
    assert event.score == pytest.approx(float(frames.features.max()))
    assert event.start_s == pytest.approx(2.5, abs=0.2)
    assert event.end_s == pytest.approx(4.0, abs=0.2)


def test_events_of_a_list_are_those_of_each_clip(detector):
    clips = [torch.cat([noise(n), 0.01 * noise(40_000), noise(9_000)]) for n in (8_000, 50_000, 1_000)]
    expected = [detector.detect(clip)[0] for clip in clips]
    assert detector.detect(clips, batch_size=3) == expected
    assert all(events[-1].end_s <= len(clip) / 16_000 for events, clip in zip(expected, clips, strict=True))


def test_silent_windows_have_no_events_and_silent_clips_no_tags(detector):
    with torch.no_grad():
        detector.head.linear.bias.fill_(100)  # everything is loud
    silence = 1e-3 * noise(33_280)  # one window at -80 dBFS
    waveform = torch.cat([silence, noise(33_280), silence])
    assert detector.detect([waveform, silence]) == [[Event("Loud", 2.08, 4.16, 1.0)], []]
    assert detector.detect(silence, silence_dbfs=-90) == [[Event("Loud", 0.0, 2.08, 1.0)]]
    assert [len(tags) for tags in detector.classify([waveform, silence])] == [1, 0]
    assert [len(tags) for tags in detector.classify(silence, silence_dbfs=-90)] == [1]
    stream = detector.stream()
    stream.push(waveform)
    assert [len(tags) for tags in stream.classify()] == [0, 1]
