"""8-bit matrix products: rounding, loading and copies."""

import copy
import pickle

import pytest
import torch

import m2d_hub
from m2d_hub.nn.int8_linear import Int8Linear, quantize_encoder

CLIP = torch.randn(20_000, generator=torch.Generator().manual_seed(0))


def test_int8_weights_that_are_loaded_are_used(tiny):
    model = copy.deepcopy(tiny)
    quantize_encoder(model.encoder)
    before = model.encode_clip(CLIP)
    for parameter in tiny.parameters():
        parameter.data.mul_(0.9)
    quantize_encoder(tiny.encoder)
    state = tiny.state_dict()
    model.load_state_dict(state)
    assert torch.equal(model.encode_clip(CLIP), tiny.encode_clip(CLIP))
    assert not torch.equal(model.encode_clip(CLIP), before)
    name = next(key for key in state if key.endswith("fc1._extra_state"))
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        model.load_state_dict({key: value for key, value in state.items() if key != name})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_int8_models_can_be_copied_and_pickled(tiny, copied):
    quantize_encoder(tiny.encoder)
    assert torch.equal(copied(tiny).encode_clip(CLIP), tiny.encode_clip(CLIP))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(96, 160)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_zero_input_gives_the_bias_in_its_own_type(layer, dtype):
    bias = layer.bias.detach().to(dtype).expand(2, 160)
    torch.testing.assert_close(Int8Linear(layer)(torch.zeros(2, 96, dtype=dtype)), bias)


def test_int8_runs_on_the_cpu_only(layer):
    with pytest.raises(
        m2d_hub.ConfigError, match="8-bit weights only run on the CPU, but the input is on meta"
    ):
        Int8Linear(layer)(torch.zeros(2, 96, device="meta"))
