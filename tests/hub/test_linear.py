"""Linear layers through oneDNN behave as nn.Linear does; its results are the reference."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from m2d_hub.nn import linear as module
from m2d_hub.nn.linear import Linear, linear

ROWS = torch.randn(3, 50, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Use oneDNN on every processor and for every size, and count its products."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this build of torch has no oneDNN product")
    calls = []
    multiply = module._multiply
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "MIN_PRODUCTS", 1)
    monkeypatch.setattr(module, "_multiply", lambda *tensors: (calls.append(1), multiply(*tensors))[1])
    return calls


@pytest.fixture
def layer():
    torch.manual_seed(1)
    return Linear(96, 64)


def reference(layer, rows=ROWS):
    return F.linear(rows, layer.weight, layer.bias)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_those_of_nn_linear(bias, onednn):
    torch.manual_seed(1)
    layer = Linear(96, 64, bias=bias)
    results = []
    for product in (linear, F.linear):
        rows = ROWS.clone().requires_grad_()
        output = product(rows, layer.weight, layer.bias)
        output.square().sum().backward()
        results.append([output, rows.grad, *(parameter.grad for parameter in layer.parameters())])
        layer.zero_grad()
    assert len(onednn) == 3  # the product, and its gradients by rows and by weight
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-5)


def test_second_derivatives_are_those_of_nn_linear(layer):
    results = []
    for product in (linear, F.linear):
        rows = ROWS.clone().requires_grad_()
        output = product(rows, layer.weight, layer.bias).tanh().sum()
        (gradient,) = torch.autograd.grad(output, rows, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), layer.weight)[0])
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_without_gradients(layer, mode, onednn):
    with mode():
        close(layer(ROWS), reference(layer))
    assert onednn


def in_place(layer):
    layer.weight.data.mul_(2)


def replaced(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def loaded(layer):
    layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()})


def averaged(layer):
    with torch.no_grad():
        torch._foreach_lerp_(list(layer.parameters()), [torch.ones_like(p) for p in layer.parameters()], 0.5)


def optimised(layer):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    layer(ROWS).square().sum().backward()
    optimizer.step()


def cast_and_back(layer):
    layer.double().float()


@pytest.mark.parametrize("change", [in_place, replaced, loaded, averaged, optimised, cast_and_back])
def test_changed_weights_take_effect_at_once(layer, change, onednn):
    with torch.no_grad():
        layer(ROWS)
        before = layer(ROWS)
    change(layer)
    with torch.no_grad():
        close(layer(ROWS), reference(layer))
        assert (change is cast_and_back) == torch.equal(layer(ROWS), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_weights_of_their_own(layer, copied):
    other = copied(layer)
    in_place(other)
    with torch.no_grad():
        close(other(ROWS), reference(other))
        close(layer(ROWS), reference(layer))


def test_functional_call_and_transforms(layer):
    doubled = {name: 2 * value.detach() for name, value in layer.named_parameters()}
    close(functional_call(layer, doubled, (ROWS,)), 2 * reference(layer))
    close(torch.func.vmap(layer)(ROWS), reference(layer))
    gradient = torch.func.grad(lambda weight: functional_call(layer, {"weight": weight}, (ROWS,)).sum())
    close(gradient(layer.weight.detach()), ROWS.sum((0, 1)).expand(64, -1))
    _, tangent = torch.func.jvp(layer, (ROWS,), (ROWS,))
    close(tangent, reference(layer) - layer.bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_take_the_ordinary_product(layer, dtype, onednn):
    layer.to(dtype)
    with torch.no_grad():
        assert torch.equal(layer(ROWS.to(dtype)), reference(layer, ROWS.to(dtype)))
    assert not onednn


def test_autocast_meta_and_disabled_onednn_take_the_ordinary_product(layer, onednn):
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(ROWS).dtype is torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            layer(ROWS)
        assert copy.deepcopy(layer).to("meta")(ROWS.to("meta")).shape == (3, 50, 64)
        layer(ROWS[:0])
    assert not onednn


def test_exported_graphs_contain_the_ordinary_product(layer):
    program = torch.export.export(layer, (ROWS,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("aten.linear" in target for target in targets)
    assert not any("mkldnn" in target for target in targets)


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("vendor_id\t: AuthenticAMD", "AVX2", True),
        ("vendor_id\t: AuthenticAMD", "DEFAULT", False),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
        ("", "DEFAULT", False),
    ],
)
def test_the_processor_decides(monkeypatch, processor, capability, expected):
    monkeypatch.undo()
    monkeypatch.setattr(module, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert module.onednn_is_faster.__wrapped__() is (expected and torch.backends.mkl.is_available())
