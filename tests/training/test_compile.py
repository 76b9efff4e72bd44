"""``compile=True`` and ``--compile``: the same weights, names, exports and resumption, by compiled blocks."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from m2d_training import PretrainConfig, build_pretrainer
from safetensors.torch import load_file

import m2d_hub
from m2d_hub import ConfigError
from m2d_hub.nn.encoder import compile_blocks

from ..processes import TRAIN, finish, kill_when
from ..signals import noise

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
SIZES = [
    "input_size=80x64",
    "embed_dim=64",
    "depth=1",
    "predictor_dim=64",
    "predictor_depth=1",
    "warmup_epochs=0",
]


@pytest.fixture
def labelled(clips, tmp_path):
    files = sorted(clips.glob("*.wav"))[:4]
    splits = ("train", "train", "valid", "test")
    rows = [f"{file},{file.stem[0]},{split}" for file in files for split in splits]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,split", *rows]) + "\n")
    return tmp_path / "list.csv"


@needs_compiler
@pytest.mark.slow
def test_a_compiled_model_answers_saves_and_exports_as_the_plain_one(tiny_folder, tmp_path):
    plain = m2d_hub.load_model(tiny_folder, device="cpu")
    compiled = m2d_hub.load_model(tiny_folder, device="cpu", compile=True)
    clips = [noise(16_000 * seconds).numpy() for seconds in (1, 3)]
    torch._dynamo.reset()
    torch.testing.assert_close(compiled.encode_clip(clips), plain.encode_clip(clips), atol=1e-4, rtol=0)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "nothing was compiled"
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == load_file(tiny_folder / "model.safetensors").keys()
    compiled.export_onnx(tmp_path / "compiled.onnx")
    plain.export_onnx(tmp_path / "plain.onnx")
    assert (tmp_path / "compiled.onnx").stat().st_size == (tmp_path / "plain.onnx").stat().st_size


def test_eight_bits_are_not_compiled(tiny_folder):
    with pytest.raises(ConfigError, match=r"compile=True is for floating-point weights, but dtype='int8'"):
        m2d_hub.load_model(tiny_folder, dtype="int8", compile=True)


def test_a_missing_compiler_is_reported(tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"compile=True needs a C\+\+ compiler on a CPU: install g\+\+"):
        m2d_hub.load_model(tiny_folder, device="cpu", compile=True)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_is_resumed_bit_for_bit(labelled, tmp_path):
    changes = [*SIZES, "epochs=4", "batch_size=4", "save_every_steps=1"]
    settings = [part for change in changes for part in ("--set", change)]

    def arguments(out):
        chosen = ["pretrain", "m2d-as", "--data", labelled, "--out", tmp_path / out]
        return [*TRAIN, *chosen, "--compile", *settings]

    finish(arguments("whole"))
    kill_when(3, tmp_path / "broken" / "metrics.jsonl", arguments("broken"))
    finish(arguments("broken"))
    whole, broken = (
        load_file(tmp_path / out / "export" / "model.safetensors") for out in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert json.loads((tmp_path / "broken" / "config.json").read_text())["config"]["compile"] is True


def test_compiled_blocks_have_the_loss_and_gradients_of_plain_ones(monkeypatch):
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    order = torch.arange(20)[None]
    log_mel = noise(1, 1, 80, 64)
    found = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        sizes = {"embed_dim": 64, "depth": 1, "predictor_dim": 64, "predictor_depth": 1}
        pretrainer = build_pretrainer(PretrainConfig(input_size=(80, 64), method="msm-mae", **sizes))
        if is_compiled:
            compile_blocks(pretrainer.encoder.blocks, torch.device("cuda"))  # no compiler is needed
        total = pretrainer(log_mel, order[:, :6], order[:, 6:]).total
        total.backward()
        found.append((float(total), pretrainer.encoder.blocks[0].mlp.fc1.weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)
