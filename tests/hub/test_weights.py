"""Results always use the current weights, however they were written; 8-bit matrix products."""

import copy
import pickle

import pytest
import torch

import m2d_hub
from m2d_hub.nn.int8_linear import Int8Linear, quantize_encoder

CLIP = torch.randn(20_000, generator=torch.Generator().manual_seed(0))


def fresh(model):
    """A newly built model of the same weights."""
    other = m2d_hub.M2D(model.config)
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return other.eval()


def matrix(model):
    return model.encoder.blocks[0].mlp.fc1.weight


def write_through_data(model):  # as moving averages of weights do
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def write_through_numpy(model):
    matrix(model).detach().numpy()[3, 5] += 1


def put_another_parameter(model):
    model.encoder.blocks[0].mlp.fc1.weight = torch.nn.Parameter(matrix(model).flip(0))


def load_a_state(model):
    state = {name: 0.9 * tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


WRITERS = [write_through_data, write_through_numpy, put_another_parameter, load_a_state]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_written_weights_change_the_result(tiny, write, mode):
    with mode():
        before = tiny.encode_clip(CLIP)
    with torch.no_grad():
        write(tiny)
    with mode():
        after = tiny.encode_clip(CLIP)
    torch.testing.assert_close(after, fresh(tiny).encode_clip(CLIP), atol=1e-6, rtol=0)
    assert not torch.equal(before, after)


def test_steps_of_a_fused_optimizer_change_the_result(tiny):
    optimizer = torch.optim.AdamW(
        tiny.parameters(), lr=0.01, fused=True
    )  # leaves the weights' versions as they are
    for _ in range(2):
        loss = tiny(CLIP[None]).features.square().mean()
        tiny.encode_clip(CLIP)  # an evaluation between forward and step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected = fresh(tiny).encode_clip(CLIP)
        torch.testing.assert_close(tiny.encode_clip(CLIP), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_weights_of_a_functional_call_are_used_in_that_call_only(tiny):
    own = tiny(CLIP[None]).features
    for factor in (0.5, 0.8, 0.5):
        other = {name: factor * parameter for name, parameter in tiny.named_parameters()}
        found = torch.func.functional_call(tiny, other, (CLIP[None],)).features
        scaled = copy.deepcopy(tiny)
        for parameter in scaled.parameters():
            parameter.mul_(factor)
        torch.testing.assert_close(found, scaled(CLIP[None]).features)
        assert torch.equal(tiny(CLIP[None]).features, own)


def test_int8_weights_that_are_loaded_are_used(tiny):
    model = copy.deepcopy(tiny)
    quantize_encoder(model.encoder)
    before = model.encode_clip(CLIP)
    with torch.no_grad():
        write_through_data(tiny)
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
