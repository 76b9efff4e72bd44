"""Commands in sequence, as users chain them: the output of one is the input of the next."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from m2d_training.cli.main import main as train_main

import m2d_hub
from m2d_hub.cli.main import main as hub_main

PROGRAMS = {"m2d-hub": hub_main, "m2d-train": train_main}
SMALL = "input_size=80x64 embed_dim=64 depth=2 predictor_dim=64 predictor_depth=1 batch_size=2 epochs=1"
TOLERANCE = 1e-5


def run(program, *arguments):
    """Run a command and return its last line, or the values that it prints as JSON."""
    result = CliRunner().invoke(PROGRAMS[program], [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout.splitlines()[-1]


def settings(text):
    return [part for setting in text.split() for part in ("--set", setting)]


@pytest.fixture
def clip(clips):
    return clips / "tabla_stroke.flac"


@pytest.fixture
def esc50(clips, tmp_path):
    """A folder with the layout of ESC-50: clips of two classes in five folds."""
    audio = tmp_path / "ESC-50-master" / "audio"
    (audio.parent / "meta").mkdir(parents=True)
    audio.mkdir()
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for name, category in (("speech_en_1.wav", "speech"), ("guitar_chord.wav", "guitar")):
            file = f"{fold}-{category}.wav"
            (audio / file).symlink_to(clips / name)
            rows.append(f"{file},{fold},0,{category},False,0,A")
    (audio.parent / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return audio.parent


def test_python_runs_the_package_as_a_command():
    answer = subprocess.run(
        [sys.executable, "-m", "m2d_hub", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split()[-1] == m2d_hub.__version__


def test_window_beyond_all_limits_is_an_error(clip, tmp_path):
    options = ["--window", "1e300", "--out", str(tmp_path / "out.npz"), "--device", "cpu"]
    result = CliRunner().invoke(hub_main, ["embed", str(clip), *options])
    assert result.exit_code == 1 and "of at most" in result.stderr and len(result.stderr) < 300


def test_labels_of_a_model_are_escaped_on_a_terminal(tiny_config, clip, tmp_path):
    labels = ("bell\x07", "two\nlines", "\x9b31mred")
    config = dataclasses.replace(tiny_config, head=m2d_hub.HeadConfig(3), labels=labels)
    m2d_hub.M2D(config).save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(hub_main, ["tag", str(clip), "--model", str(tmp_path / "model")])
    assert {line.split(maxsplit=1)[1] for line in result.stdout.splitlines()[1:]} == {
        r"bell\x07",
        r"two\nlines",
        r"\x9b31mred",
    }


def test_info_knows_every_name_of_list():
    names = run("m2d-hub", "list", "--json")
    assert [run("m2d-hub", "info", name, "--json")["name"] for name in names] == names


def test_embed_takes_the_path_that_download_prints(clip, tmp_path):
    path = run("m2d-hub", "download", "m2d-mini")
    run("m2d-hub", "embed", clip, "--model", path, "--out", tmp_path / "out.npz", "--device", "cpu")
    with np.load(tmp_path / "out.npz") as arrays:
        expected = m2d_hub.load_model("m2d-mini", device="cpu").encode_clip(clip)
        np.testing.assert_allclose(arrays["embedding"], expected.numpy(), atol=TOLERANCE)


@pytest.mark.slow
def test_converted_model_is_exported_and_plotted(publish, tmp_path, clip):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs m2d-hub[onnx]")
    run("m2d-hub", "convert", publish(embed_dim=64, depth=1), "--out", tmp_path / "own")
    run("m2d-hub", "plot", clip, "--model", tmp_path / "own", "--out", tmp_path / "clip.png")
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")
    run("m2d-hub", "export", tmp_path / "own", "--onnx", tmp_path / "own.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx", providers=["CPUExecutionProvider"])
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 20_000)).astype(np.float32)
    frames = session.run(None, {session.get_inputs()[0].name: waveform})[0]
    expected = m2d_hub.load_model(tmp_path / "own", device="cpu").encode_frames(waveform).features
    np.testing.assert_allclose(frames, expected.numpy(), atol=1e-4)


@pytest.mark.slow
def test_prepared_shards_are_pretrained_on_with_their_statistics(clips, tmp_path):
    shards, out = tmp_path / "shards", tmp_path / "run"
    run("m2d-train", "prepare", clips, "--out", shards, "--split-s", 2.0)
    measured = run("m2d-train", "statistics", shards, "--frames", 64, "--json")
    changes = settings(f"{SMALL} mean={measured['mean']} std={measured['std']}")
    answer = run("m2d-train", "pretrain", "m2d-0.7", "--data", shards, "--out", out, *changes, "--json")
    run("m2d-hub", "embed", clips, "--model", answer["export"], "--out", tmp_path / "e.npz")
    assert m2d_hub.load_model(answer["export"], device="cpu").config.frontend.mean == measured["mean"]
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["embedding"].shape == (14, 5 * 64)


@pytest.mark.parametrize("kind", ["finetune", "linear-eval"])
def test_model_trained_on_a_list_tags(kind, esc50, tiny_folder, clip, tmp_path):
    listed, out = tmp_path / "esc50.csv", tmp_path / "run"
    run("m2d-train", "list", "esc50", esc50, "--out", listed)
    options = {
        "finetune": ["small", *settings("epochs=1 min_steps=0 batch_size=2 try_linear=false")],
        "linear-eval": ["--seeds", 1, "--epochs", 5],
    }[kind]
    run("m2d-train", kind, *options, "--model", tiny_folder, "--data", listed, "--out", out, "--json")
    path = out / {"finetune": "export", "linear-eval": "model"}[kind]
    (answer,) = run("m2d-hub", "tag", clip, "--model", path, "--json")
    assert {tag["label"] for tag in answer["tags"]} == {"guitar", "speech"}
