"""Augmentation in fine-tuning, and that masked, thinned batches give what inference gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from m2d_training.finetuning.augment import (
    AugmentRanges,
    draw_augmentation,
    draw_patchout,
    mix_log_mels,
    mix_targets,
    resized_crops,
    spec_augment,
    stack_patchout,
)
from m2d_training.finetuning.model import FinetuneModel, WindowLayout

TABLE_II = AugmentRanges(0.5, 30, 192, True, 0.5)  # the strongest of each column


def draws(num_frames, ranges=TABLE_II, count=300):
    rng = np.random.default_rng(0)
    return [draw_augmentation(ranges, 80, num_frames, rng) for _ in range(count)]


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_mixup_adds_powers_as_equation_5_does():
    log_mel = noise(2, 3, 5)
    mixed = mix_log_mels(log_mel, torch.tensor([5, 5]), torch.tensor([0.3, 0.0]))
    expected = (0.7 * log_mel[0].exp() + 0.3 * log_mel[1].exp()).log()
    torch.testing.assert_close(mixed[0], expected)
    assert torch.equal(mixed[1], log_mel[1])  # λ = 0 leaves a clip as it is


def test_mixup_repeats_a_shorter_partner():
    log_mel = noise(2, 3, 6)
    mixed = mix_log_mels(log_mel, torch.tensor([6, 2]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(mixed[0], log_mel[1, :, :2].repeat(1, 3))


def test_mixup_mixes_labels_by_the_same_share():
    targets = torch.eye(2)
    assert mix_targets(targets, torch.tensor([0.25, 0.0])).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_draws_stay_within_the_papers_parameters():
    found = draws(1001)
    assert 0.4 < max(draw.mix_ratio for draw in found) <= 0.5
    assert max(draw.frequency_mask[1] for draw in found) == 30
    assert 180 < max(draw.time_mask[1] for draw in found) <= 192
    assert all(sum(draw.frequency_mask) <= 80 and sum(draw.time_mask) <= 1001 for draw in found)
    for first_mel, first_frame, mels, frames in (draw.crop_box for draw in found):  # BYOL-A: 0.6 to 1.5
        assert 48 <= mels <= 80 and 600 <= frames <= 1501
        assert 0 <= first_mel <= 80 - mels and -251 <= first_frame <= 1251 - frames


def test_a_time_mask_leaves_half_of_a_short_clip():
    assert max(draw.time_mask[1] for draw in draws(20)) == 10


def test_a_box_of_the_whole_clip_changes_nothing():
    log_mel = noise(2, 16, 20)
    log_mel[1, :, 12:] = 0.0
    boxes = torch.tensor([[0.0, 0.0, 16.0, 20.0], [0.0, 0.0, 16.0, 12.0]])
    cut = resized_crops(log_mel, torch.tensor([20, 12]), boxes)
    torch.testing.assert_close(cut, log_mel, atol=1e-5, rtol=0)


def test_resized_crops_are_bicubic():
    log_mel = noise(1, 40, 60)
    cut = resized_crops(log_mel, torch.tensor([60]), torch.tensor([[10.0, 20.0, 20.0, 30.0]]))[0]
    part = log_mel[None, :, 10:30, 20:50]
    expected = F.interpolate(part, size=(40, 60), mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(cut[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-4, rtol=0)


def test_spec_augment_sets_a_band_and_a_run_to_the_mean():
    log_mel = torch.ones(2, 5, 6)
    masked = spec_augment(log_mel, torch.tensor([[1, 2], [0, 0]]), torch.tensor([[3, 1], [4, 2]]))
    expected = torch.ones(2, 5, 6)
    expected[0, 1:3], expected[0, :, 3], expected[1, :, 4:] = 0.0, 0.0, 0.0
    assert torch.equal(masked, expected)


def test_patchout_keeps_half_of_the_patches_as_whole_rows_and_columns():
    kept = draw_patchout(5, 62, 0.5, np.random.default_rng(0))
    assert len(kept.rows) * len(kept.columns) == pytest.approx(5 * 62 * 0.5, abs=2)
    ids = stack_patchout([kept], 1, 62).ids[0]
    grid = torch.zeros(5 * 62).index_fill(0, ids, 1.0).reshape(5, 62)
    assert torch.equal(grid.any(dim=1).nonzero()[:, 0], torch.from_numpy(kept.rows))
    assert torch.equal(grid, grid.any(dim=1).float()[:, None] * grid.any(dim=0).float())


@pytest.fixture(params=["frames", "tokens"])
def classifier(tiny, request):
    tiny.set_head(3, features=request.param, activation="softmax")
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    return FinetuneModel(tiny.eval())


def stacked(model, lengths):
    """Waveforms of some lengths, as inference and as training take them."""
    waveform = noise(len(lengths), max(lengths)) * 0.1
    log_mels = [model.frontend(waveform[i : i + 1, :length])[0, 0] for i, length in enumerate(lengths)]
    most = max(log_mel.shape[1] for log_mel in log_mels)
    batch = torch.stack([F.pad(log_mel, (0, most - log_mel.shape[1])) for log_mel in log_mels])
    return waveform, batch, torch.tensor([log_mel.shape[1] for log_mel in log_mels])


@pytest.mark.parametrize("lengths", [[900, 16_000, 30_000], [5_000, 33_280, 80_000], [20_000, 20_000]])
def test_masked_batches_give_what_inference_gives(classifier, lengths):
    waveform, log_mel, num_frames = stacked(classifier.backbone, lengths)
    with torch.no_grad():
        found = classifier(log_mel, num_frames)
        expected = classifier.backbone.classify_waveform(waveform, torch.tensor(lengths))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_patchout_encodes_only_the_kept_patches(tiny):
    tiny.set_head(3, features="tokens", activation="softmax")
    torch.nn.init.normal_(tiny.head.linear.weight)
    model, lengths = FinetuneModel(tiny.eval()), [8_000, 60_000]
    _, log_mel, num_frames = stacked(tiny, lengths)
    layout = model.layout(log_mel.shape[-1])
    rng = np.random.default_rng(0)
    kept = [draw_patchout(5, layout.count_heard(int(frames)), 0.5, rng) for frames in num_frames]
    with torch.no_grad():
        found = model(log_mel, num_frames, stack_patchout(kept, layout.num_windows, layout.num_time))
        for clip, own in enumerate(kept):
            encoded = []
            for window in range(layout.num_windows):
                start = window * layout.frames
                part = F.pad(log_mel, (0, layout.frames))[clip : clip + 1, None, :, start : start + 208]
                columns = own.columns[own.columns // 13 == window] % 13
                ids = (torch.from_numpy(own.rows)[:, None] * 13 + torch.from_numpy(columns)).flatten()
                encoded.append(tiny.encoder.encode(tiny.encoder.embed(part)[:, ids])[:, 1:])
            expected = tiny.head(torch.cat(encoded, dim=1).mean(dim=1))
            torch.testing.assert_close(found[clip : clip + 1], expected, atol=1e-4, rtol=0)


def test_windows_need_not_be_whole_patches():
    layout = WindowLayout.of(1001, window_frames=1001, patch_frames=16)  # 62 × 16 + 9
    assert (layout.num_windows, layout.num_time, layout.count_heard(1001)) == (1, 62, 62)
    assert layout.heard(torch.tensor([1001, 17])).sum(dim=(1, 2)).tolist() == [62, 2]
