"""Augmentation in fine-tuning, and equality of masked and thinned batches with inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from m2d_training.finetuning.augment import (
    BatchRandomness,
    draw_augmentation,
    mixed,
    resized_crops,
    spec_augment,
)
from m2d_training.finetuning.config import FinetuneConfig
from m2d_training.finetuning.model import AudioClassifier
from m2d_training.finetuning.patchout import draw_patchout, stack_patchout

TABLE_II = FinetuneConfig(mixup_ratio=0.5, frequency_mask=30, time_mask=192, resized_crop=True)


def draws(num_frames, ranges=TABLE_II, count=300, batch_size=10):
    rng = np.random.default_rng(0)
    return [
        draw_augmentation(
            ranges,
            80,
            num_frames,
            rng,
            BatchRandomness((0, index // batch_size), batch_size, index % batch_size),
        )
        for index in range(count)
    ]


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(16_000,), (80, 100), (4,)])
def test_mixup_is_linear_in_waveforms_spectrograms_and_labels(shape):
    values = noise(3, *shape)
    found = mixed(values, torch.tensor([2, 1, 0]), torch.tensor([0.25, 0.5, 0.0]))
    torch.testing.assert_close(found[0], 0.75 * values[0] + 0.25 * values[2])
    torch.testing.assert_close(found[1:], values[1:])  # its own partner; nothing of a partner


def test_partners_are_a_permutation_of_each_batch():
    found = draws(100, FinetuneConfig(mixup_ratio=0.5), 40, batch_size=20)
    batches = [[draw.partner for draw in found[:20]], [draw.partner for draw in found[20:]]]
    assert [sorted(batch) for batch in batches] == [list(range(20))] * 2
    assert batches[0] != batches[1]


def test_a_batch_can_share_its_masks():
    shared = FinetuneConfig(frequency_mask=30, time_mask=48, shared_masks=True)
    found = draws(400, shared, 20)
    assert all(draw.time_masks == found[0].time_masks for draw in found[:10])
    assert all(draw.frequency_masks == found[10].frequency_masks for draw in found[10:])
    assert found[0].time_masks != found[10].time_masks
    alone = draws(400, FinetuneConfig(frequency_mask=30, time_mask=48), 10)
    assert len({draw.time_masks[0] for draw in alone}) > 5


def test_draws_stay_within_the_papers_parameters():
    found = draws(1001)
    bands, runs = ([getattr(draw, f"{axis}_masks")[0] for draw in found] for axis in ("frequency", "time"))
    assert max(width for _, width in bands) == 30 and 180 < max(width for _, width in runs) <= 192
    assert all(sum(band) <= 80 for band in bands) and all(sum(run) <= 1001 for run in runs)
    for first_mel, first_frame, mels, frames in (draw.crop_box for draw in found):  # BYOL-A: 0.6 to 1.5
        assert 48 <= mels <= 80 and 600 <= frames <= 1501
        assert 0 <= first_mel <= 80 - mels and -251 <= first_frame <= 1251 - frames


def test_a_time_mask_leaves_half_of_a_short_clip():
    assert max(draw.time_masks[0][1] for draw in draws(20)) == 10


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
    expected = F.interpolate(part, size=(40, 60), mode="bicubic", align_corners=True)[0, 0]
    assert torch.equal(cut, expected)  # of the box alone, with aligned corners, as on the evaluation platform
    beyond = resized_crops(log_mel, torch.tensor([60]), torch.tensor([[0.0, -15.0, 40.0, 90.0]]))[0]
    assert not beyond[:, :8].any() and not beyond[:, -8:].any() and bool(beyond[:, 12:-12].all())


def test_spec_augment_sets_bands_and_runs_to_the_mean():
    log_mel = torch.ones(2, 5, 6)
    bands = torch.tensor([[[1, 2], [4, 1]], [[0, 0], [0, 0]]])
    masked = spec_augment(log_mel, bands, torch.tensor([[[3, 1]], [[4, 2]]]))
    expected = torch.ones(2, 5, 6)
    expected[0, 1:3], expected[0, 4], expected[0, :, 3], expected[1, :, 4:] = 0.0, 0.0, 0.0, 0.0
    assert torch.equal(masked, expected)


@pytest.fixture(params=["frames", "tokens"])
def classifier(tiny, request):
    tiny.set_head(3, features=request.param, activation="softmax")
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    return AudioClassifier(tiny.eval(), FinetuneConfig())


def stacked(model, lengths):
    """Waveforms of some lengths, as inference and as training take them."""
    waveform = noise(len(lengths), max(lengths)) * 0.1
    log_mels = [model.frontend(waveform[i : i + 1, :length])[0, 0] for i, length in enumerate(lengths)]
    most = max(log_mel.shape[1] for log_mel in log_mels)
    batch = torch.stack([F.pad(log_mel, (0, most - log_mel.shape[1])) for log_mel in log_mels])
    return waveform, batch, torch.tensor([log_mel.shape[1] for log_mel in log_mels])


@pytest.mark.parametrize("lengths", [[900, 16_000, 30_000], [5_000, 33_280, 80_000]])
def test_masked_batches_equal_inference(classifier, lengths):
    waveform, log_mel, num_frames = stacked(classifier.backbone, lengths)
    with torch.no_grad():
        found = classifier(log_mel, num_frames)
        expected = classifier.backbone.classify_waveform(waveform, torch.tensor(lengths))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_patchout_encodes_only_the_kept_patches(tiny):
    tiny.set_head(3, features="tokens", activation="softmax")
    torch.nn.init.normal_(tiny.head.linear.weight)
    model, lengths = AudioClassifier(tiny.eval(), FinetuneConfig()), [8_000, 60_000]
    _, log_mel, num_frames = stacked(tiny, lengths)
    windows = tiny.windows.fitted(log_mel.shape[-1])
    num_windows, window_frames = len(windows.plan(log_mel.shape[-1])), windows.window_frames
    rng = np.random.default_rng(0)
    kept = [draw_patchout(5, windows.count(int(frames)), 0.5, 2, rng) for frames in num_frames]
    with torch.no_grad():
        found = model(log_mel, num_frames, stack_patchout(kept, num_windows, windows.window_tokens))
        for clip, own in enumerate(kept):
            encoded = []
            for window in range(num_windows):
                start = window * window_frames
                part = F.pad(log_mel, (0, window_frames))[clip : clip + 1, None, :, start : start + 208]
                tokens = np.zeros((5, 13), dtype=bool)
                inside = own[:, window * 13 : (window + 1) * 13]
                tokens[:, : inside.shape[1]] = inside
                ids = torch.from_numpy(tokens.flatten()).nonzero()[:, 0]
                encoded.append(tiny.encoder.encode(tiny.encoder.embed(part)[:, ids])[:, 1:])
            expected = tiny.head(torch.cat(encoded, dim=1).mean(dim=1))
            torch.testing.assert_close(found[clip : clip + 1], expected, atol=1e-4, rtol=0)
