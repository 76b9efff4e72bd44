"""Pre-training against the authors' released code (``tests/parity``: ``pretrain_*``, ``recipe``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from m2d_training import (
    OfflineConfig,
    PretrainConfig,
    build_pretrainer,
    ema_decay,
    explained_variance_auc,
    learning_rate,
    mix_noise,
    rank_me,
)

from m2d_hub.pretrained.published_names import published_name

from ..parity.reference_weights import state_dict

PARITY = Path(__file__).parents[1] / "parity"
CASES = ["pretrain_m2d", "pretrain_m2d_as", "pretrain_m2dx", "pretrain_m2dx_shifted"]
TOLERANCE = 1e-4


def load_case(name):
    return json.loads((PARITY / f"{name}.json").read_text()), np.load(PARITY / f"{name}.npz")


def build(case):
    sizes = case["config"]
    offline = None
    if case["offline"]:
        offline = OfflineConfig(
            kind=case["offline"], dim=sizes["offline_dim"], weight=case["loss"]["loss_off"]
        )
    pretrainer = build_pretrainer(
        PretrainConfig(
            input_size=tuple(sizes["input_size"]),
            patch_size=tuple(sizes["patch_size"]),
            embed_dim=sizes["embed_dim"],
            depth=sizes["depth"],
            predictor_dim=sizes["decoder_dim"],
            predictor_depth=sizes["decoder_depth"],
            mask_ratio=case["mask_ratio"],
            offline=offline,
        )
    )
    pretrainer.load_published({name: torch.from_numpy(array) for name, array in state_dict(**sizes).items()})
    return pretrainer


def run(name):
    case, arrays = load_case(name)
    pretrainer = build(case)
    order = torch.from_numpy(arrays["order"])
    visible = int(arrays["n_visible"])
    target = torch.from_numpy(arrays["offline_target"]) if case["offline"] else None
    log_mel = torch.from_numpy(arrays["spectrogram"])[:, None]
    terms = pretrainer(log_mel, order[:, :visible], order[:, visible:], target)
    return case, arrays, pretrainer, terms


@pytest.mark.parametrize("name", CASES)
def test_loss_terms_match_the_released_code(name):
    _, arrays, _, terms = run(name)
    assert terms.total.item() == pytest.approx(float(arrays["loss"]), abs=TOLERANCE)
    if "loss_m2d" in arrays:
        assert terms.m2d.item() == pytest.approx(float(arrays["loss_m2d"]), abs=TOLERANCE)
        assert terms.offline.item() == pytest.approx(float(arrays["loss_offline"]), abs=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_predictions_match_the_released_code(name):
    case, arrays, _, terms = run(name)
    prediction = terms.prediction.detach().numpy()[..., :: case["pred_stride"]]
    np.testing.assert_allclose(prediction, arrays["pred"], atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_gradient_norms_match_the_released_code(name):
    case, _, pretrainer, terms = run(name)
    terms.total.backward()
    trained = {key: p for key, p in pretrainer.named_parameters() if p.requires_grad}
    norms = {published_name(key): p.grad.norm().item() for key, p in trained.items()}
    assert norms == pytest.approx(case["grad_norms"], rel=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_one_ema_step_matches_the_released_code(name):
    case, arrays = load_case(name)
    pretrainer = build(case)
    pretrainer.update_target_encoder(case["ema_decay"])
    published = pretrainer.export_published()
    fc1 = published["target_blocks.1.mlp.fc1.weight"][::16, ::16]
    np.testing.assert_allclose(fc1, arrays["ema_fc1"], atol=1e-6)
    np.testing.assert_allclose(published["target_norm.weight"], arrays["ema_norm"], atol=1e-6)


def test_schedules_match_the_released_code():
    case, arrays = load_case("recipe")
    rates = [
        learning_rate(
            epoch,
            peak_lr=case["peak_lr"],
            min_lr=case["min_lr"],
            warmup_epochs=case["warmup_epochs"],
            epochs=case["epochs"],
        )
        for epoch in arrays["epoch"]
    ]
    decays = [ema_decay(int(step), case["total_steps"], *case["ema"]) for step in arrays["ema_step"]]
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-6)
    np.testing.assert_allclose(decays, arrays["ema_decay"], rtol=0, atol=1e-9)


def test_noise_mixing_matches_the_released_code():
    case, arrays = load_case("recipe")
    clean, noise = torch.from_numpy(arrays["clean"]), torch.from_numpy(arrays["noise"])
    np.testing.assert_allclose(mix_noise(clean, noise, case["noise_ratio"]), arrays["mixed"], atol=1e-5)


def test_analysis_matches_the_released_code():
    _, arrays = load_case("recipe")
    features = torch.from_numpy(arrays["features"])
    assert rank_me(features) == pytest.approx(float(arrays["rank_me"]), abs=TOLERANCE)
    auc = explained_variance_auc(features)
    assert auc == pytest.approx(float(arrays["explained_variance_auc"]), abs=TOLERANCE)
