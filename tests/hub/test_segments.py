"""Segments of recordings, each embedded as the clip that it is."""

from __future__ import annotations

import pytest
import soundfile
import torch

import m2d_hub
from m2d_hub.audio import AudioPart

from ..signals import noise

RATE = 16_000
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("seconds", "options", "starts"),
    [
        (6.0, {"segment_s": 2.0}, [0, 2, 4]),
        (6.5, {"segment_s": 2.0}, [0, 2, 4, 4.5]),  # the last one is moved back
        (6.0, {"segment_s": 3.0, "hop_s": 1.0}, [0, 1, 2, 3]),
        (6.4, {"segment_s": 3.0, "hop_s": 1.0}, [0, 1, 2, 3, 3.4]),
        (12.0, {"segment_s": 5.5, "hop_s": 5.0}, [0, 5, 6.5]),
        (1.5, {"segment_s": 2.0, "hop_s": 0.5}, [0]),
        (2.0, {"segment_s": 2.0, "hop_s": 0.5}, [0]),
    ],
    ids=str,
)
def test_segments_cover_a_recording_and_equal_its_cuts(seconds, options, starts, tiny):
    waveform = noise(round(seconds * RATE))
    segments = tiny.encode_segments(waveform, **options)
    length = min(seconds, options["segment_s"])
    assert segments.start_s.tolist() == pytest.approx(starts)
    assert segments.end_s.tolist() == pytest.approx([start + length for start in starts])
    cuts = [waveform[round(start * RATE) : round((start + length) * RATE)] for start in starts]
    torch.testing.assert_close(segments.features, tiny.encode_clip(cuts), atol=TOLERANCE, rtol=0)


def test_segments_of_several_files_equal_their_parts(tiny, tmp_path):
    lengths = {"a.wav": 5.0, "b.wav": 2.2}
    for name, seconds in lengths.items():
        soundfile.write(tmp_path / name, noise(round(seconds * RATE)).numpy(), RATE, subtype="FLOAT")
    paths = [tmp_path / name for name in lengths]
    segments = tiny.encode_segments(paths, segment_s=2.0, batch_size=2)
    assert segments.clip.tolist() == [0, 0, 0, 1, 1]
    assert segments.start_s.tolist() == pytest.approx([0, 2, 3, 0, 0.2])
    positions = zip(segments.clip.tolist(), segments.start_s.tolist(), segments.end_s.tolist(), strict=True)
    parts = [AudioPart(str(paths[clip]), start_s, end_s) for clip, start_s, end_s in positions]
    torch.testing.assert_close(segments.features, tiny.encode_clip(parts), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_s": 0}, "segment_s must be a positive number of seconds, got 0"),
        ({"segment_s": 1.0, "hop_s": 2.0}, "hop_s=2.0 is longer than segment_s=1.0"),
    ],
)
def test_segments_out_of_range_are_refused(options, message, tiny):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        tiny.encode_segments(noise(RATE), **options)


def test_segments_of_a_model_with_projections_lie_in_the_text_space(tiny):
    with pytest.raises(m2d_hub.ConfigError, match="no projections into a text space"):
        tiny.encode_segments(noise(RATE), text_space=True)
