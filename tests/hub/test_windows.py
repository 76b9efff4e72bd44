"""Planning and cutting of windows; expected values follow from the facts of the published features."""

import pytest
import torch

from m2d_hub.windows import Window, count_tokens, cut_windows, plan_windows, timestamps_s


def test_windows_follow_one_another_and_the_last_is_padded_to_a_whole_patch():
    assert plan_windows(1371, 608, 16) == [
        Window(first_frame=0, num_frames=608, first_token=0, num_tokens=38),
        Window(first_frame=608, num_frames=608, first_token=38, num_tokens=38),
        Window(first_frame=1216, num_frames=155, first_token=76, num_tokens=10),
    ]


def test_a_window_that_is_no_whole_number_of_patches_loses_its_odd_frames():
    assert plan_windows(1001, 1001, 16) == [Window(0, 1001, 0, 62)]
    assert count_tokens(plan_windows(1002, 1001, 16)) == 63
    assert count_tokens(plan_windows(995, 1001, 16)) == 62


def test_own_length_windows_are_one_padded_window():
    assert plan_windows(1001, None, 16) == [Window(0, 1001, 0, 63)]


def test_timestamps_are_the_centres_of_the_tokens_frames():
    times = timestamps_s(40, window_frames=608, patch_frames=16, hop_s=0.01)
    assert times[:2].tolist() == pytest.approx([0.075, 0.235])
    # The second window starts at frame 608.
    assert times[38:].tolist() == pytest.approx([6.08 + 0.075, 6.08 + 0.235])


def test_own_length_windows_have_evenly_spaced_timestamps():
    times = timestamps_s(1000, window_frames=None, patch_frames=4, hop_s=0.01)
    assert times[[0, 999]].tolist() == pytest.approx([0.015, 999 * 0.04 + 0.015])


def test_windows_of_odd_length_keep_true_timestamps():
    times = timestamps_s(70, window_frames=1001, patch_frames=16, hop_s=0.01)
    assert times[62].item() == pytest.approx(10.01 + 0.075)


@pytest.mark.parametrize("block_frames", [1, 7, 100, 5000])
@pytest.mark.parametrize(("window_frames", "patch_frames"), [(608, 16), (1001, 16), (None, 16), (208, 4)])
@pytest.mark.parametrize("num_frames", [1, 16, 17, 608, 609, 993, 2000])
def test_streamed_windows_hold_the_planned_frames(num_frames, window_frames, patch_frames, block_frames):
    log_mel = torch.arange(1.0, 2 * num_frames + 1).view(2, num_frames)
    cut = list(cut_windows(log_mel.split(block_frames, dim=1), window_frames, patch_frames))
    assert [window for window, _ in cut] == plan_windows(num_frames, window_frames, patch_frames)
    for window, frames in cut:
        used = min(window.num_frames, window.num_tokens * patch_frames)
        torch.testing.assert_close(
            frames[:, :used], log_mel[:, window.first_frame : window.first_frame + used]
        )
        assert frames.shape[1] == window.num_tokens * patch_frames
        assert not frames[:, used:].any()
