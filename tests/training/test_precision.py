"""What ``precision`` computes in: the forward pass in bfloat16, weights, losses and updates in float32."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main
from safetensors.torch import load_file
from torch import nn

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
def test_bfloat16_runs_the_layers_in_bfloat16_and_keeps_losses_and_weights(kind, train, tmp_path):
    types, expected = train(kind, "fp32")
    assert types == {torch.float32}
    types, losses = train(kind, "bf16")
    # The head of a fine-tuning, and what standardises its input, may stay in float32.
    assert torch.bfloat16 in types
    assert losses != expected
    assert losses == pytest.approx(expected, rel=0.05)
    stored = load_file(tmp_path / "bf16" / "export" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float32}
