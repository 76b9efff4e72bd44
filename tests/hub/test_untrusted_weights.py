"""Damaged or hostile weights and configurations raise an error that names them, without delay."""

import argparse
import json
import math
import pickle
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

import m2d_hub
from m2d_hub import CheckpointError, ConfigError, M2DError
from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.pretrained import checkpoint as tensors_module

SMALL = EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    m2d_hub.M2D(ModelConfig(encoder=SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A model's folder, to damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def load(path):
    return m2d_hub.load_model(path, device="cpu", sample_rate=16_000)


def refused(path, match=None, error=CheckpointError, seconds=5):
    start = time.monotonic()
    with pytest.raises(error, match=match):
        load(path)
    assert time.monotonic() - start < seconds


def published(**changed):
    """Published tensors of a small model, some of them changed or removed if None."""
    model = m2d_hub.M2D(ModelConfig(encoder=SMALL))
    named = {
        name.removeprefix("encoder."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("encoder.")
    }
    return {name: tensor for name, tensor in (named | changed).items() if tensor is not None}


# config.json

FIELDS = {
    "encoder": "in_channels embed_dim depth head_width mlp_ratio norm_eps input_size patch_size",
    "frontend": "sample_rate window_samples hop_samples n_mels mean std f_min_hz f_max_hz transform",
}
WRONG = [True, "12", None, [], {}, 10**30, math.nan, math.inf, [10**9, 10**9], [True, 16], "x" * 10**6]
INFINITE = {"mean": [1e308, -1e308], "std": [1e-320, 1e308, 0, -1], "norm_eps": [1e-320, 1e308, 0, -1]}


def test_a_field_of_another_type_or_range_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for part, fields in FIELDS.items():
        for field in fields.split():
            correct = config[part][field]
            for value in [*WRONG, *INFINITE.get(field, [10**9] if field != "mean" else [])]:
                config[part][field] = value
                (folder / "config.json").write_text(json.dumps(config))
                refused(folder, "Hz|f_m" if field.endswith("_hz") else field)
            config[part][field] = correct


TEXTS = ["", "null", "[]", "3", '"a"', "{", "[" * 200_000, "\x00", "{}" + " " * 11_000_000, '{"encoder": []}']
TEXTS += [
    '{"frontend": 3}',
    '{"head": []}',
    '{"x": 1}',
    '{"name": 3}',
    '{"labels": "abc"}',
    '{"labels": [1]}',
]
TEXTS += ['{"head": {"num_classes": true}}', '{"clap": {"dim": "7"}}', '{"own_length_windows": 1}']


def test_a_configuration_of_another_shape_is_refused(folder):
    for text in TEXTS:
        (folder / "config.json").write_text(text)
        refused(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_size": [80, 999_984]}, "size mismatch for encoder.pos_embed"),
        ({"embed_dim": 65_536}, "size mismatch for encoder.cls_token"),
        ({"depth": 1_000}, "Missing key"),
    ],
)
def test_no_memory_is_allocated_for_sizes_that_the_weights_lack(folder, changed, message):
    config = json.loads((folder / "config.json").read_text())
    config["encoder"] |= changed
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, message, seconds=20)


# safetensors


def rewrite(folder, change):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(change(tensors), folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused_by_name(folder, dtype):
    name = "encoder.norm.weight"
    rewrite(folder, lambda tensors: tensors | {name: torch.ones(64).to(dtype)})
    refused(folder, rf"not weights \({str(dtype)[6:]}\): encoder\.norm\.weight")


HEADERS = [b"null", b"[" * 100_000, b'{"a": {"dtype": "F32"}}', b"\xff" * 8]


@pytest.mark.parametrize(
    "start",
    [*(struct.pack("<Q", len(text)) + text for text in HEADERS), struct.pack("<Q", 2**40)],
)
def test_a_malformed_header_is_refused(folder, start):
    path = folder / "model.safetensors"
    path.write_bytes(start if len(start) > 8 else start + path.read_bytes()[8:])
    refused(folder, r"model\.safetensors cannot be read as safetensors")


def test_another_program_may_write_the_file_while_a_model_of_it_is_used(folder):
    code = (
        "import sys, torch, m2d_hub; model = m2d_hub.load_model(sys.argv[1], device='cpu');"
        "before = model.encode_clip(torch.ones(9_000)); "
        "open(sys.argv[1] + '/model.safetensors', 'r+b').truncate(9);"
        "assert torch.equal(model.encode_clip(torch.ones(9_000)), before)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


# .pth


def save(tmp_path, contents):
    path = tmp_path / "renamed.pth"
    torch.save(contents, path)
    return path


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"PK", b"PK\x03\x04" * 9, b"\x80\x02", b"text\n", b"\x80\x02" + b"(" * 100_000),
        *(b"\x80\x02]q\x00.", pickle.dumps({"a": 1})[:-4], b"cos\nsystem\n(S'true'\ntR."),
        b"\x80\x04\x95" + b"\xff" * 8,
    ],
    ids=lambda data: data[:9].hex() or "empty",
)
def test_pickles_that_are_damaged_or_unsafe_are_refused(tmp_path, data):
    path = tmp_path / "renamed.pth"
    path.write_bytes(data)
    refused(path, r"renamed\.pth")


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


ODD = {
    "expanded": {"norm.weight": torch.zeros(1).expand(10**12)},
    "sparse": {"norm.weight": torch.eye(8).to_sparse()},
    "meta": {"norm.weight": torch.zeros(8, device="meta")},
    "integers": {"norm.weight": ones(64, dtype=torch.int32)},
    "complex": {"norm.weight": ones(64, dtype=torch.complex64)},
    "float8": {"norm.weight": ones(64).to(torch.float8_e5m2)},
    "scalar-patches": {"patch_embed.proj.weight": ones()},
    "flat-patches": {"patch_embed.proj.weight": ones(64, 256)},
    "empty-patches": {"patch_embed.proj.weight": ones(0, 1, 16, 16)},
    "flat-positions": {"pos_embed": ones(11)},
    "empty-positions": {"pos_embed": ones(1, 0, 64)},
    "flat-mlp": {"blocks.0.mlp.fc1.weight": ones(64)},
    "block-without-number": {"blocks.x.mlp.fc1.weight": ones(64, 64)},
    "statistics-of-one": {"norm_stats": ones(1)},
    "statistics-of-zero": {"norm_stats": torch.zeros(2)},
    "flat-head": {"head.mlp.mlp.0.weight": ones(64)},
    "half-a-text-space": {"audio_proj.0.weight": ones(8, 64)},
    "missing": {"norm.weight": None},
}


@pytest.mark.parametrize("case", ODD)
def test_tensors_of_other_shapes_and_types_are_refused(tmp_path, case):
    refused(save(tmp_path, {"model": published(**ODD[case])}), error=(CheckpointError, ConfigError))


@pytest.mark.parametrize(
    "args",
    [{"sr": "many"}, {"sr": 10**12}, {"sr": -1}, {"input_size": 7}, {"input_size": ["a", "b"]}, {"sr": [1]}],
    ids=str,
)
def test_settings_of_another_kind_are_refused(tmp_path, args):
    path = save(tmp_path, {"model": published(), "args": argparse.Namespace(**args)})
    with pytest.raises(M2DError):
        m2d_hub.load_model(path, device="cpu")


def test_a_million_small_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "MAX_TENSORS", 1_000)
    tensor = torch.zeros(1)
    path = save(tmp_path, {f"blocks.{index}": tensor for index in range(1_001)})
    refused(path, "has 1,001 tensors")


# Names


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5_000, "~nosuchuser/model", "a\0b", "./" + "y" * 300, "~"])
def test_names_that_no_file_system_takes_are_unknown(name):
    with pytest.raises((m2d_hub.UnknownModelError, CheckpointError)):
        load(name)


@pytest.mark.parametrize("name", [None, b"m2d-mini", 3, ["m2d-mini"], np.zeros(3)])
def test_a_value_that_is_not_a_name_is_refused(name):
    with pytest.raises(ConfigError, match="is not a model name"):
        load(name)
