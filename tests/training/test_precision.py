"""What ``precision`` computes in: the forward pass alone, weights, losses and updates are float32."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner
from m2d_training import PretrainConfig
from m2d_training.cli.main import main
from m2d_training.runs.loop import Stepper
from m2d_training.runs.processes import build_accelerator, resolve_precision
from safetensors.torch import load_file
from torch import nn

from m2d_hub import ConfigError

SIZES = "input_size=80x64 embed_dim=64 depth=2 predictor_dim=64 predictor_depth=1"
SETTINGS = {"pretrain": f"{SIZES} warmup_epochs=0", "finetune": "min_steps=0 try_linear=false"}


@pytest.fixture
def train(clips, tiny, tmp_path):
    """Trains on real clips: ``train(kind, precision)`` -> types that linear layers gave, and losses."""
    tiny.save_pretrained(tmp_path / "tiny")
    files = sorted(clips.glob("*.wav"))[:4]
    splits = ("train", "train", "valid", "test")
    rows = [f"{file},{file.stem[0]},{split}" for file in files for split in splits]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,split", *rows]) + "\n")
    presets = {"pretrain": ["m2d-as"], "finetune": ["small", "--model", str(tmp_path / "tiny")]}

    def run(kind, precision):
        types, out = set(), tmp_path / precision

        def note(module, inputs, output):
            if isinstance(module, nn.Linear) and module.training:
                types.add(output.dtype)

        changes = [*SETTINGS[kind].split(), "epochs=1", "batch_size=4", f"precision={precision}"]
        settings = [part for change in changes for part in ("--set", change)]
        hook = nn.modules.module.register_module_forward_hook(note)
        try:
            arguments = [kind, *presets[kind], "--data", tmp_path / "list.csv", "--out", out, *settings]
            result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        finally:
            hook.remove()
        assert result.exit_code == 0, result.output
        (record,) = out.glob("**/metrics.jsonl" if kind == "pretrain" else "trainings/*/metrics.jsonl")
        return types, [json.loads(line)["loss"] for line in record.read_text().splitlines()]

    return run


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_half_precision_runs_the_layers_in_it_and_keeps_losses_and_weights(kind, train, tmp_path):
    types, expected = train(kind, "fp32")
    assert types == {torch.float32}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        types, losses = train(kind, precision)
        # The head of a fine-tuning, and what standardises its input, may stay in float32.
        assert dtype in types
        assert losses != expected
        assert losses == pytest.approx(expected, rel=0.05)
        stored = load_file(tmp_path / precision / "export" / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "expected"),
    [("cuda", True, "bf16"), ("cuda", False, "fp16"), ("cpu", True, "fp32"), ("mps", True, "fp32")],
)
def test_auto_is_half_precision_on_gpus_alone(device, has_bfloat16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert PretrainConfig().precision == "auto"
    assert resolve_precision("auto", torch.device(device)) == expected
    assert resolve_precision("auto", torch.device(device), earlier="bf16") == "bf16"
    assert resolve_precision("fp32", torch.device(device), earlier="bf16") == "fp32"


def test_a_run_writes_down_what_auto_is(train, tmp_path):
    types, _ = train("pretrain", "auto")
    on_gpu = torch.cuda.is_available()
    assert (types == {torch.float32}) is not on_gpu
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["config"]["precision"] != "auto"


def stepper_of(weight, precision):
    """A model of one weight, and its steps by SGD at rate 1."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return model, Stepper(build_accelerator(), model, optimizer, math.inf, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_do_not_depend_on_the_scale_of_the_loss(precision):
    model, stepper = stepper_of(2.0, precision)
    step = stepper.step([3.0], lambda factor: factor * model.weight.sum()[None])
    assert (step.grad_norm, step.is_taken, step.is_overflow) == (3.0, True, False)
    assert model.weight.item() == 2.0 - 3.0


def test_gradients_do_not_depend_on_accelerates_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    model, stepper = stepper_of(2.0, "fp32")
    assert stepper.step([3.0], lambda factor: factor * model.weight.sum()[None]).grad_norm == 3.0
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="ACCELERATE_USE_DEEPSPEED is not supported"):
        build_accelerator()


def test_float16_lowers_the_scale_of_gradients_that_overflow_until_a_step_is_taken():
    model, stepper = stepper_of(0.0, "fp16")
    assert not stepper.step([math.nan], lambda factor: factor * model.weight.sum()[None]).is_overflow
    model, stepper = stepper_of(0.0, "fp16")
    steps = []
    while not steps or not steps[-1].is_taken:  # float32 ends at 3.4e38: 32,768 times 2e34 is beyond it
        steps.append(stepper.step([2e34], lambda factor: factor * model.weight.sum()[None]))
    assert [step.is_overflow for step in steps] == [True, True, False]  # 65,536, 32,768, 16,384
    assert model.weight.item() == pytest.approx(-2e34)
