"""The pre-training methods against plain formulas of the paper, on tiny shapes."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from m2d_training import (
    OfflineConfig,
    PretrainConfig,
    build_pretrainer,
    explained_variance_auc,
    mix_noise,
    rank_me,
)
from m2d_training.data.masking import count_visible, draw_mask
from m2d_training.pretraining.analysis import TokenSums
from m2d_training.pretraining.losses import class_loss
from m2d_training.pretraining.offline import EncodedTokens, FrameMapper, build_offline, merge_tokens
from m2d_training.pretraining.pretrainer import build_started, encoder_part
from m2d_training.runs.loop import learning_rate
from torch.nn import functional as F

from m2d_hub.errors import CheckpointError, ConfigError

SIZES = {
    "input_size": (32, 48),
    "patch_size": (16, 8),
    "embed_dim": 64,
    "depth": 2,
    "predictor_dim": 64,
    "predictor_depth": 1,
    "mask_ratio": 0.7,
}


def inputs(config, batch=3):
    generator = torch.Generator().manual_seed(0)
    log_mel = torch.randn(batch, config.in_channels, *config.input_size, generator=generator)
    order = torch.rand(batch, config.num_patches, generator=generator).argsort(dim=1)
    visible = int(config.num_patches * (1 - config.mask_ratio))
    return log_mel, order[:, :visible], order[:, visible:]


def build(**fields):
    torch.manual_seed(0)
    return build_pretrainer(PretrainConfig(**{**SIZES, **fields}))


def pixels_of(log_mel, ids, patch_size):
    """Patches cut out one by one, (B, n, mels · frames · channels)."""
    mels, frames = patch_size
    per_row = log_mel.shape[3] // frames
    clips = []
    for clip, row in zip(log_mel, ids, strict=True):
        patches = []
        for index in row.tolist():
            top, left = index // per_row * mels, index % per_row * frames
            patches.append(clip[:, top : top + mels, left : left + frames].permute(1, 2, 0).reshape(-1))
        clips.append(torch.stack(patches))
    return torch.stack(clips)


def standardised(values):
    """Each row minus its mean, over its unbiased standard deviation."""
    return (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("in_channels", [1, 3])
def test_msm_mae_learns_standardised_pixels_of_masked_patches(in_channels):
    pretrainer = build(method="msm-mae", in_channels=in_channels)
    log_mel, visible, masked = inputs(pretrainer.config)
    terms = pretrainer(log_mel, visible, masked)
    target = standardised(pixels_of(log_mel, masked, (16, 8)))
    assert terms.prediction.shape == target.shape
    assert terms.total.item() == pytest.approx(((terms.prediction - target) ** 2).mean().item(), abs=1e-5)


@pytest.mark.parametrize(("method", "sizes"), [("m2d", (512, 8, 32)), ("msm-mae", (384, 4, 64))])
def test_predictors_have_the_published_sizes(method, sizes):
    config = PretrainConfig(method=method).resolve()
    assert (config.predictor_dim, config.predictor_depth, config.predictor_head_width) == sizes


@pytest.mark.parametrize("method", ["m2d", "m2d-all-patches"])
def test_target_encoder_sees_only_the_patches_of_its_method(method):
    pretrainer = build(method=method)
    log_mel, visible, masked = inputs(pretrainer.config)
    before = pretrainer(log_mel, visible, masked).prediction
    target = pretrainer._target(log_mel, pretrainer.encoder.embed(log_mel), masked)
    tokens = pretrainer.encoder.embed(log_mel).detach()
    tokens = tokens.scatter(1, visible[..., None].expand(-1, -1, 64), 7.0)  # spoils what is visible
    spoiled = pretrainer._target(log_mel, tokens, masked)
    assert torch.equal(target, spoiled) == (method == "m2d")
    assert before.shape == target.shape


def test_mse_loss_compares_predictions_with_standardised_targets():
    pretrainer = build(loss="mse")
    log_mel, visible, masked = inputs(pretrainer.config)
    terms = pretrainer(log_mel, visible, masked)
    target = pretrainer._target(log_mel, pretrainer.encoder.embed(log_mel), masked)
    torch.testing.assert_close(target, standardised(target), atol=1e-4, rtol=0)
    assert terms.total.item() == pytest.approx(F.mse_loss(terms.prediction, target).item(), abs=1e-6)


def test_target_standardisation_can_be_left_out():
    pretrainer = build(loss="mse", standardise_target=False)
    log_mel, _, masked = inputs(pretrainer.config)
    target = pretrainer._target(log_mel, pretrainer.encoder.embed(log_mel), masked)
    pretrainer.target_encoder.norm.weight.data.mul_(3.0)
    pretrainer.target_encoder.norm.bias.data.mul_(3.0)
    tripled = pretrainer._target(log_mel, pretrainer.encoder.embed(log_mel), masked)
    torch.testing.assert_close(tripled, 3 * target)


def test_gradients_never_reach_the_target_encoder():
    pretrainer = build()
    pretrainer(*inputs(pretrainer.config)).total.backward()
    assert all(p.grad is None for p in pretrainer.target_encoder.parameters())
    assert all(p.grad is not None for p in pretrainer.encoder.blocks.parameters())


def test_target_encoder_starts_from_separate_random_weights():
    pretrainer = build()
    own, online = pretrainer.target_encoder.blocks[0], pretrainer.encoder.blocks[0]
    assert not torch.allclose(own.mlp.fc1.weight, online.mlp.fc1.weight)


def test_loss_weights_combine_both_losses():
    offline = OfflineConfig(kind="labels", dim=5, weight=0.25)
    pretrainer = build(offline=offline, m2d_weight=2.0)
    terms = pretrainer(*inputs(pretrainer.config), torch.eye(5)[:3])
    assert terms.total.item() == pytest.approx(2.0 * terms.m2d.item() + 0.25 * terms.offline.item(), rel=1e-6)


def test_label_loss_is_the_mean_binary_cross_entropy_of_mean_frames():
    pretrainer = build(offline=OfflineConfig(kind="labels", dim=5))
    log_mel, visible, masked = inputs(pretrainer.config)
    labels = torch.eye(5)[:3]
    terms = pretrainer(log_mel, visible, masked, labels)
    tokens = torch.empty(3, 12, 64)
    for clip in range(3):
        tokens[clip, visible[clip]] = terms.encoded[clip, 1:]
        tokens[clip, masked[clip]] = terms.prediction[clip].detach()
    frames = torch.cat([tokens[:, :6], tokens[:, 6:]], dim=-1)  # two frequency rows of six frames
    logits = F.linear(frames.mean(1), *pretrainer.offline.projection.parameters())
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    assert terms.offline.item() == pytest.approx(expected.item(), abs=1e-5)


def test_labels_of_one_class_a_clip_can_be_learnt_by_cross_entropy():
    logits, classes = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    labels = torch.nn.functional.one_hot(classes, 4).float()
    labels[4] = torch.nan  # not known
    expected = torch.nn.functional.cross_entropy(logits[:4], classes[:4])
    torch.testing.assert_close(class_loss(logits, labels), expected)
    assert class_loss(logits, torch.full((5, 4), torch.nan)) == 0
    mapper = FrameMapper(OfflineConfig("labels", dim=4, label_loss="cross-entropy"), 8, (2, 3))
    tokens, ids = torch.randn(5, 6, 8), torch.arange(6).expand(5, -1)
    mapped = mapper.projection(tokens.unflatten(1, (2, 3)).transpose(1, 2).flatten(2).mean(dim=1))
    found = mapper(EncodedTokens(tokens[:, :2], tokens[:, 2:], ids[:, :2], ids[:, 2:]), labels)
    torch.testing.assert_close(found, class_loss(mapped, labels))


def test_text_as_wide_as_the_shared_space_is_not_projected():
    """The published M2D-CLAP weights have no text projection: 768 = 768."""
    equal, narrower = (
        build_offline(OfflineConfig("text", dim=768, text_dim=width), 32, (5, 4)).state_dict()
        for width in (768, 384)
    )
    assert not any("text_proj" in name for name in equal) and "clap.text_proj.weight" in narrower


def test_clips_whose_labels_are_unknown_take_no_part_in_the_label_loss():
    pretrainer = build(offline=OfflineConfig(kind="labels", dim=5))
    log_mel, visible, masked = inputs(pretrainer.config)
    labels = torch.eye(5)[:3]
    labels[2] = math.nan
    known = pretrainer(log_mel[:2], visible[:2], masked[:2], labels[:2]).offline
    offline = pretrainer(log_mel, visible, masked, labels).offline
    assert offline.item() == pytest.approx(known.item() * 2 / 3, abs=1e-6)  # a mean over three clips


def mapped_from_visible(pretrainer, terms, visible):
    """What the offline network maps the means of each row's visible tokens to, (3, K)."""
    rows = torch.zeros(3, 2, 64)  # two frequency rows of six frames
    for clip in range(3):
        for row in range(2):
            inside = terms.encoded[clip, 1:][visible[clip] // 6 == row]
            if len(inside):
                rows[clip, row] = inside.mean(0)
    return F.linear(rows.flatten(1), *pretrainer.offline.projection.parameters())


def test_msm_mae_labels_are_mapped_from_the_visible_tokens_of_each_row():
    pretrainer = build(method="msm-mae", offline=OfflineConfig(kind="labels", dim=5))
    log_mel, visible, masked = inputs(pretrainer.config)
    labels = torch.eye(5)[:3]
    terms = pretrainer(log_mel, visible, masked, labels)
    logits = mapped_from_visible(pretrainer, terms, visible)
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    assert terms.offline.item() == pytest.approx(expected.item(), abs=1e-5)


def test_msm_mae_learns_the_mean_of_features_from_the_visible_tokens_of_each_row():
    pretrainer = build(method="msm-mae", offline=OfflineConfig(kind="features", dim=5))
    log_mel, visible, masked = inputs(pretrainer.config)
    features = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1))
    terms = pretrainer(log_mel, visible, masked, features)
    mean = features.mean(dim=1)
    target = (mean - mean.mean(dim=1, keepdim=True)) / mean.var(dim=1, keepdim=True, correction=1).sqrt()
    similarity = F.cosine_similarity(mapped_from_visible(pretrainer, terms, visible), target)
    assert terms.offline.item() == pytest.approx((2 - 2 * similarity).mean().item(), abs=1e-4)


def test_merged_tokens_stand_where_their_ids_say():
    visible_ids, masked_ids = torch.tensor([[3, 0]]), torch.tensor([[2, 1]])
    visible, predicted = visible_ids[..., None].float(), masked_ids[..., None].float()
    tokens = merge_tokens(visible, predicted, visible_ids, masked_ids)
    assert tokens.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_text_loss_falls_when_captions_match_their_clips():
    pretrainer = build(offline=OfflineConfig(kind="text", dim=16, text_dim=24, weight=0.01))
    log_mel, visible, masked = inputs(pretrainer.config)
    text = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([p for p in pretrainer.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(12):
        terms = pretrainer(log_mel, visible, masked, text)
        optimizer.zero_grad()
        terms.offline.backward()
        optimizer.step()
        losses.append(terms.offline.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("stored", [-3.0, 20.0])
def test_text_temperature_is_clamped(stored):
    pretrainer = build(offline=OfflineConfig(kind="text", dim=16))
    scale = pretrainer.offline.clap.logit_scale
    scale.data.fill_(stored)
    limit = min(max(stored, 0.0), math.log(100.0))
    text = torch.randn(3, 16)
    clamped = pretrainer(*inputs(pretrainer.config), text).offline
    assert scale.item() == pytest.approx(limit)
    clamped.backward()
    assert scale.grad.item() != 0.0
    assert clamped.item() == pytest.approx(pretrainer(*inputs(pretrainer.config), text).offline.item())


def test_published_tensors_come_back_unchanged():
    source = build(offline=OfflineConfig(kind="labels", dim=5))
    target = build_pretrainer(source.config)
    target.load_published(source.export_published())
    loaded = target.export_published()
    assert loaded.keys() == source.export_published().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.export_published().items())


def test_weights_of_another_shape_are_named():
    source = build(depth=1)
    with pytest.raises(CheckpointError, match=r"missing \['blocks.1"):
        build().load_published(source.export_published())
    shapes = r"patch_embed.proj.weight \(64, 1, 16, 8\) \(expected \(64, 1, 16, 16\)\)"
    with pytest.raises(CheckpointError, match=shapes):
        build(patch_size=(16, 16)).load_published(build().export_published())


LABELS = {"offline": OfflineConfig(kind="labels", dim=5)}
BOTH = "offline network and the predictor"


@pytest.mark.parametrize(
    ("given", "wanted", "parts"),
    [
        ({"method": "msm-mae"}, {}, "predictor"),  # pixels are predicted instead of features
        ({"predictor_depth": 2}, {}, "predictor"),
        (LABELS, {"offline": OfflineConfig(kind="labels", dim=7)}, "offline network"),
        (LABELS | {"predictor_dim": 32}, {"offline": OfflineConfig(kind="labels", dim=7)}, BOTH),
    ],
)
def test_weights_whose_encoder_fits_start_it_alone_by_the_remedy_that_is_named(given, wanted, parts):
    weights = build(**given).export_published()
    pretrainer = build(**wanted)
    message = f'The encoder fits, but not the {parts}: set start_parts="encoder" to start from the encoder'
    with pytest.raises(CheckpointError, match=message):
        pretrainer.load_published(weights)
    pretrainer.load_published(encoder_part(weights))


def test_unknown_tensors_are_named():
    tensors = build().export_published() | {"head.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unknown \['head.weight'\]"):
        build().load_published(tensors)


def test_encoder_only_weights_leave_the_rest_as_it_is(caplog):
    pretrainer = build()
    before = pretrainer.export_published()
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm")
    encoder = {name: tensor + 1 for name, tensor in before.items() if name.startswith(parts)}
    pretrainer.load_published(encoder)
    after = pretrainer.export_published()
    assert torch.equal(after["cls_token"], encoder["cls_token"])
    assert torch.equal(after["target_norm.weight"], before["target_norm.weight"])
    assert "hold no target encoder" in caplog.text


@pytest.mark.parametrize("kind", ["random", "time", "structured"])
def test_every_mask_that_is_accepted_has_visible_and_masked_patches(kind):
    rng = np.random.default_rng(0)
    accepted = 0
    for frames in (16, 48, 112):
        for ratio in np.linspace(0.0, 1.0, 41):
            try:
                fields = {"input_size": (32, frames), "mask_kind": kind, "mask_ratio": float(ratio)}
                config = PretrainConfig(**{**SIZES, **fields})
            except ConfigError:
                continue
            accepted += 1
            mask = draw_mask(kind, config.grid, config.mask_ratio, rng)
            assert len(mask.visible_ids) and len(mask.masked_ids)
    assert accepted > 50


def test_a_missing_or_misshaped_offline_target_is_refused():
    pretrainer = build(offline=OfflineConfig(kind="labels", dim=5))
    with pytest.raises(ConfigError, match="give offline_target"):
        pretrainer(*inputs(pretrainer.config))
    with pytest.raises(ConfigError, match=r"shape \(3, 5\), got \(3, 4\)"):
        pretrainer(*inputs(pretrainer.config), torch.zeros(3, 4))


@pytest.mark.parametrize("kind", ["random", "time", "structured"])
@pytest.mark.parametrize("grid", [(5, 38), (1, 304), (5, 50)])
def test_masks_are_partitions_of_a_fixed_size(kind, grid):
    rng = np.random.default_rng(0)
    masks = [draw_mask(kind, grid, 0.6, rng) for _ in range(5)]
    for mask in masks:
        assert sorted([*mask.visible_ids, *mask.masked_ids]) == list(range(grid[0] * grid[1]))
        assert len(mask.visible_ids) == count_visible(kind, grid, 0.6)
    assert len({tuple(mask.visible_ids) for mask in masks}) == 5


def test_time_masks_hide_runs_of_whole_frames():
    mask = draw_mask("time", (5, 40), 0.5, np.random.default_rng(0), run_frames=10)
    hidden = np.zeros((5, 40), dtype=bool)
    hidden.reshape(-1)[mask.masked_ids] = True
    assert (hidden == hidden[0]).all()
    changes = np.flatnonzero(np.diff(hidden[0].astype(int)))
    assert len(changes) <= 5  # runs of ten frames, of which one may be cut


def test_structured_masks_keep_whole_rows_and_columns():
    mask = draw_mask("structured", (5, 40), 0.5, np.random.default_rng(0))
    visible = np.zeros((5, 40), dtype=bool)
    visible.reshape(-1)[mask.visible_ids] = True
    rows, columns = visible.any(axis=1), visible.any(axis=0)
    assert (visible == np.outer(rows, columns)).all()
    assert 0.4 <= visible.mean() <= 0.6


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_noise_ratio_at_its_ends_gives_one_of_both(ratio):
    clean, noise = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    assert torch.equal(mix_noise(clean, noise, ratio), noise if ratio else clean)


def test_loud_values_do_not_overflow_in_mixing():
    mixed = mix_noise(torch.tensor([200.0, -300.0]), torch.tensor([-300.0, -300.0]), 0.2)
    torch.testing.assert_close(mixed, torch.tensor([200.0 + math.log(0.8), -300.0]))


def test_rate_stays_at_its_peak_until_the_decay_at_the_end():
    settings = {"peak_lr": 2.0, "min_lr": 0.5, "warmup_epochs": 1, "decay_epochs": 4}
    rates = [learning_rate(epoch, epochs=10, **settings) for epoch in (0.5, 1, 6, 8, 10)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.25, 0.5])
    assert learning_rate(6, epochs=100, **settings) == 2.0  # a longer run has the same beginning


@pytest.mark.parametrize("count", [5, 300])
def test_checks_of_tokens_in_batches_are_those_of_all_tokens_together(count):
    tokens = torch.randn(count, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 17) + 1.0
    sums = TokenSums(16, torch.device("cpu"))
    for batch in tokens.split(100):
        sums.add(batch)
    expected = {"rank_me": rank_me(tokens), "explained_variance_auc": explained_variance_auc(tokens)}
    assert sums.checks() == pytest.approx(expected, rel=1e-5)
    assert TokenSums(16, torch.device("cpu")).checks() == {}


def test_rank_me_counts_equal_directions():
    assert rank_me(torch.eye(8).repeat(4, 1)) == pytest.approx(8.0, abs=1e-6)
    assert rank_me(torch.ones(32, 8)) == pytest.approx(1.0, abs=1e-6)


def test_explained_variance_is_higher_for_collapsed_features():
    spread = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    collapsed = spread * torch.tensor([10.0] + [0.1] * 15)
    assert explained_variance_auc(spread) < 0.6 < 0.8 < explained_variance_auc(collapsed)


def test_models_built_in_threads_have_the_weights_of_one_built_alone():
    config = PretrainConfig(**SIZES)
    before = torch.get_rng_state()
    alone = build_started(config, None).export_published()
    with ThreadPoolExecutor(4) as threads:
        built = list(threads.map(lambda _: build_started(config, None).export_published(), range(8)))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(alone[name], weights[name]) for weights in built for name in alone)
