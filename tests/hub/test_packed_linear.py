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


def write_in_place(layer):
    layer.weight.mul_(2)


def write_through_data(layer):  # as moving averages of weights do
    layer.weight.data.mul_(0.9)


def write_a_row_through_data(layer):
    layer.weight.data[7] = 0


def write_through_numpy(layer):
    layer.weight.detach().numpy()[3, 5] += 1


def write_through_foreach(layer):
    torch._foreach_mul_([layer.weight.data], 0.999)


def write_other_storage(layer):
    layer.weight.data = layer.weight.data.flip(0)


def write_through_a_view(layer):
    layer.weight.data.view(-1)[::2].neg_()


def load_a_state(layer):
    layer.load_state_dict({"weight": torch.eye(160, 96), "bias": torch.ones(160)})


def swap_two_weights(layer):
    layer.weight.data[0, [1, 2]] = layer.weight.data[0, [2, 1]]


WRITERS = [
    write_in_place,
    write_through_data,
    write_a_row_through_data,
    write_through_numpy,
    write_through_foreach,
    write_other_storage,
    write_through_a_view,
    load_a_state,
    swap_two_weights,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_way_to_write_weights_leaves_a_stale_answer(layer, write, mode):
    features = torch.randn(4, 96)
    with mode():
        layer(features)
    with torch.no_grad():
        write(layer)
    with mode():
        expected = F.linear(features, layer.weight, layer.bias)
        torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam])
def test_no_step_of_a_fused_optimizer_leaves_a_stale_answer(layer, kind):
    features = torch.randn(4, 96)
    optimizer = kind(layer.parameters(), lr=0.1, fused=True)  # leaves the version as it is
    for _ in range(3):
        loss = layer(features).square().mean()
        with torch.no_grad():
            layer(features)  # an evaluation between forward and step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(layer(features), F.linear(features, layer.weight, layer.bias))


def test_weights_of_a_functional_call_are_of_that_call_only(layer):
    features = torch.randn(4, 96)
    with torch.no_grad():
        for _ in range(4):
            other = {"weight": torch.randn(160, 96), "bias": torch.zeros(160)}
            found = torch.func.functional_call(layer, other, (features,))
            torch.testing.assert_close(found, F.linear(features, other["weight"]), atol=1e-4, rtol=1e-4)
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
