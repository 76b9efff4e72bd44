"""Missing or broken optional dependencies are errors that name the extra."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import pytest
from click.testing import CliRunner
from m2d_training.cli.main import main

import m2d_hub
from m2d_hub import io
from m2d_hub.audio.live import Interrupt, open_microphone

ROOT = Path(__file__).resolve().parents[2]
TRAINING = [
    ["pretrain", "m2d-mini", "--data", "DATA", "--out", "OUT"],
    ["linear-eval", "--model", "m2d-mini", "--data", "DATA", "--out", "OUT"],
    ["summarise", "DATA", "--out", "OUT"],
]


def without(monkeypatch, *missing):
    """Make packages look as if they were not installed."""

    def found(name):
        if name in missing:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(io, "version", found)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Make packages fail to import."""

    def put(name, error):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{name}.py").write_text(f"raise {error}\n")
        monkeypatch.syspath_prepend(tmp_path / "broken")
        monkeypatch.delitem(sys.modules, name, raising=False)

    return put


@pytest.mark.parametrize("arguments", TRAINING, ids=lambda arguments: arguments[0])
def test_training_without_its_extra_starts_nothing_and_names_all_missing_packages(
    arguments, tmp_path, monkeypatch
):
    without(monkeypatch, "accelerate", "timm")
    places = {"DATA": str(tmp_path / "list.csv"), "OUT": str(tmp_path / "out")}
    answer = CliRunner().invoke(main, [places.get(part, part) for part in arguments])
    assert answer.exit_code == 1
    assert answer.output.rstrip().endswith("needs accelerate, timm: pip install 'm2d-hub[training]'.")
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".log"}


def test_only_the_packages_of_the_extra_are_required(monkeypatch):
    without(monkeypatch, "ray", "torch", "gradio")
    io.require_extra("training", "this")
    with pytest.raises(m2d_hub.ConfigError, match=r"^this needs ray: pip install 'm2d-hub\[ray\]'\.$"):
        io.require_extra("ray", "this")
    monkeypatch.setattr(io, "requires", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    io.require_extra("ray", "a source tree that is not installed")


def test_a_broken_package_is_reported_with_the_reason(broken, tiny_folder, tmp_path):
    broken("onnx", "ImportError('numpy.core.multiarray failed to import')")
    model = m2d_hub.load_model(tiny_folder, device="cpu")
    with pytest.raises(
        m2d_hub.ConfigError,
        match=r"^ONNX export needs onnx, onnxscript and onnxruntime, which cannot be imported "
        r"\(numpy\.core\.multiarray failed to import\): pip install 'm2d-hub\[onnx\]'\.$",
    ):
        model.export_onnx(tmp_path / "model.onnx")


def test_a_missing_system_library_is_reported_with_what_to_install(broken):
    broken("sounddevice", "OSError('PortAudio library not found')")
    with pytest.raises(
        m2d_hub.ConfigError, match=r"\(PortAudio library not found\).*\[live\].*apt install libportaudio2\.$"
    ):
        next(open_microphone(16_000, 1, Interrupt()))


def test_every_extra_named_in_docs_and_messages_exists():
    known = set(metadata("m2d-hub").get_all("Provides-Extra"))
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        extra
        for path in texts
        for group in re.findall(r"m2d-hub\[([a-z0-9,]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    places = {"importing": 2, "require_extra": 0}  # of the extra's name among the arguments
    for folder in ("m2d_hub", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) in places:
                    given = node.args[places[node.func.id]]
                    named |= {given.value} if isinstance(given, ast.Constant) else set()
    assert {"onnx", "training", "s3"} <= named <= known
