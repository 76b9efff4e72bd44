"""Planning and cutting of windows; expected values follow from the facts of the published features."""

import numpy as np
import pytest
import torch

from m2d_hub.config import FrontendConfig
from m2d_hub.windows import StreamFramer, Window, Windows


def test_windows_follow_one_another_and_the_last_is_padded_to_a_whole_patch():
    assert Windows(608, 16).plan(1371) == [
        Window(first_frame=0, num_frames=608, first_token=0, num_tokens=38),
        Window(first_frame=608, num_frames=608, first_token=38, num_tokens=38),
        Window(first_frame=1216, num_frames=155, first_token=76, num_tokens=10),
    ]


def test_a_window_that_is_not_a_multiple_of_the_patch_drops_the_remaining_frames():
    assert Windows(1001, 16).plan(1001) == [Window(0, 1001, 0, 62)]
    assert Windows(1001, 16).count(1002) == 63
    assert Windows(1001, 16).count(995) == 62


def test_own_length_windows_are_one_padded_window():
    assert Windows(None, 16).plan(1001) == [Window(0, 1001, 0, 63)]


def test_timestamps_are_the_centres_of_the_tokens_frames():
    times = Windows(608, 16).timestamps_s(40, hop_s=0.01)
    assert times[:2].tolist() == pytest.approx([0.075, 0.235])
    # The second window starts at frame 608.
    assert times[38:].tolist() == pytest.approx([6.08 + 0.075, 6.08 + 0.235])


def test_own_length_windows_have_evenly_spaced_timestamps():
    times = Windows(None, 4).timestamps_s(1000, hop_s=0.01)
    assert times[[0, 999]].tolist() == pytest.approx([0.015, 999 * 0.04 + 0.015])


def test_windows_of_odd_length_keep_true_timestamps():
    times = Windows(1001, 16).timestamps_s(70, hop_s=0.01)
    assert times[62].item() == pytest.approx(10.01 + 0.075)


@pytest.mark.parametrize(("window_frames", "patch_frames"), [(608, 16), (1001, 16), (None, 16), (208, 4)])
@pytest.mark.parametrize("num_frames", [1, 16, 17, 608, 609, 993, 2000])
def test_cut_windows_hold_the_planned_frames(num_frames, window_frames, patch_frames):
    log_mel = torch.arange(1.0, 2 * num_frames + 1).view(2, num_frames)
    windows = Windows(window_frames, patch_frames)
    cut = windows.cut(log_mel)
    assert [window for window, _ in cut] == windows.plan(num_frames)
    for window, frames in cut:
        used = min(window.num_frames, window.num_tokens * patch_frames)
        assert torch.equal(frames[:, :used], log_mel[:, window.first_frame : window.first_frame + used])
        assert frames.shape[1] == window.num_tokens * patch_frames
        assert not frames[:, used:].any()


def framed(waveform: torch.Tensor, config: FrontendConfig) -> torch.Tensor:
    """Samples of each frame (T, window), centred on every hop, with numpy's reflection at both ends."""
    half = config.window_samples // 2
    short = np.pad(waveform.numpy(), (0, max(0, half + 1 - len(waveform))))
    padded = torch.from_numpy(np.pad(short, half, mode="reflect"))
    return padded.unfold(0, config.window_samples, config.hop_samples)[
        : len(waveform) // config.hop_samples + 1
    ]


@pytest.mark.parametrize("block_samples", [97, 4_000, 100_000])
@pytest.mark.parametrize(("window_frames", "patch_frames"), [(608, 16), (1001, 16), (None, 16), (208, 4)])
@pytest.mark.parametrize(
    "num_samples", [1, 100, 200, 201, 1_000, 97_119, 97_279, 97_280, 97_281, 97_480, 200_000]
)
def test_streamed_windows_hold_the_samples_of_the_planned_frames(
    num_samples, window_frames, patch_frames, block_samples
):
    config, windows = FrontendConfig(), Windows(window_frames, patch_frames)
    waveform = torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    cutter = StreamFramer(config, windows)
    cut = [found for block in waveform.split(block_samples) for found in cutter.push(block)]
    cut += list(cutter.finish())
    frames = framed(waveform, config)
    assert [window for window, _ in cut] == windows.plan(len(frames))
    for window, samples in cut:
        used = window.num_tokens * patch_frames
        given = samples.unfold(0, config.window_samples, config.hop_samples)
        assert len(given) == used
        token_mask = min(window.num_frames, used)
        assert torch.equal(given[:token_mask], frames[window.first_frame : window.first_frame + token_mask])


@pytest.mark.parametrize("hop_frames", [16, 304, 592])
@pytest.mark.parametrize("num_samples", [150, 97_000, 97_281, 200_000])
def test_overlapping_windows_begin_a_hop_apart_and_the_last_brings_something_new(num_samples, hop_frames):
    config, windows = FrontendConfig(), Windows(608, 16)
    waveform = torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    cutter = StreamFramer(config, windows, hop_frames)
    cut = [*cutter.push(waveform), *cutter.finish()]
    frames = framed(waveform, config)
    firsts = [window.first_frame for window, _ in cut]
    assert firsts == [index * hop_frames for index in range(len(cut))]
    ends = [window.first_frame + window.num_frames for window, _ in cut]
    assert ends == sorted(set(ends)) and ends[-1] == len(frames)
    for window, samples in cut:
        token_mask = samples.unfold(0, config.window_samples, config.hop_samples)[: window.num_frames]
        assert torch.equal(token_mask, frames[window.first_frame : window.first_frame + window.num_frames])


def test_an_empty_waveform_has_no_windows():
    cutter = StreamFramer(FrontendConfig(), Windows(608, 16))
    assert [*cutter.push(torch.zeros(0)), *cutter.finish()] == []


@pytest.mark.parametrize(
    ("windows", "most_frames", "expected", "num_windows"),
    [
        (Windows(608, 16), 100, Windows(112, 16), 1),  # seven patches
        (Windows(608, 16), 608, Windows(608, 16), 1),
        (Windows(608, 16), 609, Windows(608, 16), 2),
        (Windows(1001, 16), 1001, Windows(1001, 16), 1),  # 62 × 16 + 9
        (Windows(None, 16), 1001, Windows(1008, 16), 1),
    ],
)
def test_a_batch_has_windows_no_longer_than_its_longest_clip_needs(
    windows, most_frames, expected, num_windows
):
    assert windows.fitted(most_frames) == expected
    log_mel = torch.arange(1.0, 6 * most_frames + 1).view(2, 3, most_frames)
    stacked, found = expected.stack(log_mel)
    assert stacked.shape == (2 * num_windows, 3, expected.window_frames) and found == num_windows
    rows = stacked.unflatten(0, (2, num_windows)).transpose(1, 2).flatten(2)
    assert torch.equal(rows[..., :most_frames], log_mel) and not rows[..., most_frames:].any()


@pytest.mark.parametrize(("window_frames", "patch_frames"), [(608, 16), (1001, 16), (208, 4)])
def test_token_mask_matches_the_plan_of_each_clip(window_frames, patch_frames):
    windows, num_frames = Windows(window_frames, patch_frames), [1, 17, 600, 992, 1001, 1002, 1500]
    token_mask = windows.token_mask(torch.tensor(num_frames), len(windows.plan(max(num_frames))))
    for clip, frames in zip(token_mask, num_frames, strict=True):
        planned = [window.num_tokens for window in windows.plan(frames)]
        assert clip.sum(dim=1).tolist() == planned + [0] * (len(clip) - len(planned))
        assert all(row[:count].all() for row, count in zip(clip, planned, strict=False))
        assert windows.count(frames) == int(clip.sum())
