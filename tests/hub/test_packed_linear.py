"""Packed and 8-bit linear layers against the plain product."""

import copy

import pytest
import torch
import torch.nn.functional as F

from m2d_hub.nn.int8_linear import Int8Linear
from m2d_hub.nn.packed_linear import Linear


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear(96, 160)


@pytest.mark.parametrize("shape", [(96,), (1, 96), (3, 7, 96), (0, 96)])
def test_packed_product_equals_the_plain_one(layer, shape):
    features = torch.randn(shape)
    expected = F.linear(features, layer.weight, layer.bias)
    with torch.no_grad():
        torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(features), expected)


def test_weights_are_packed_again_after_they_change(layer):
    features = torch.randn(4, 96)
    with torch.no_grad():
        before = layer(features)
        layer.weight.mul_(2)
        after_change = layer(features)
        torch.testing.assert_close(after_change, F.linear(features, layer.weight, layer.bias))
        layer.load_state_dict({"weight": torch.zeros(160, 96), "bias": torch.ones(160)})
        after_load = layer(features)
    assert not torch.allclose(before, after_change)
    assert torch.equal(after_load, torch.ones(4, 160))


def test_weights_are_packed_again_after_a_step_of_a_fused_optimizer(layer):
    features = torch.randn(4, 96)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)  # leaves the version as it is
    for _ in range(2):
        layer(features).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(layer(features), F.linear(features, layer.weight, layer.bias))


def test_packed_weights_are_not_saved_or_copied(layer):
    with torch.no_grad():
        layer(torch.randn(4, 96))
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert copy.deepcopy(layer)._packed is None and layer._packed is not None


def test_int8_product_is_within_its_rounding(layer):
    features = torch.randn(50, 96)
    exact = layer(features)
    error = (Int8Linear(layer)(features) - exact).norm() / exact.norm()
    # Rounding to 63 levels of each token's peak and 127 of each output's: about 1 % of the norm.
    assert error < 0.03


def test_int8_scale_of_a_token_ignores_the_other_tokens(layer):
    quantised = Int8Linear(layer)
    quiet = torch.randn(1, 96)
    beside_loud = quantised(torch.cat([quiet, 1000 * torch.randn(1, 96)]))
    assert torch.equal(quantised(quiet)[0], beside_loud[0])


def test_int8_zero_input_gives_the_bias(layer):
    torch.testing.assert_close(Int8Linear(layer)(torch.zeros(2, 96)), layer.bias.detach().expand(2, 160))
