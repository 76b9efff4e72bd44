"""What README, docs and help print: every command parses, the offline ones run, and Python too."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from m2d_training.cli.main import main as train_main
from m2d_training.finetuning.presets import load_finetune_preset
from m2d_training.pretraining.presets import load_preset
from m2d_training.runs.settings import apply_settings

import m2d_hub
from m2d_hub.cli.main import main as hub_main
from m2d_hub.config import ClapConfig, HeadConfig

from ..processes import ONE_THREAD

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, click.Group] = {"m2d-hub": hub_main, "m2d-train": train_main}
PRESETS = {"pretrain": lambda name: load_preset(name).config, "finetune": load_finetune_preset}
COMMANDS = [(program, name) for program, group in PROGRAMS.items() for name in group.commands]
# What README's trainings are given besides, so that they end at once
SMALLER = {
    "epochs=3": "epochs=1, batch_size=2",
    'finetune("small"': 'finetune("small", epochs=1, min_steps=0',
}
OF_THE_AUTHORS = re.compile(r"m2d-(as|clap|0)")


def blocks(path: Path, language: str) -> list[str]:
    """Code of a document that is marked with a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


def help_of(program: str, command: str) -> str:
    group = PROGRAMS[program]
    with group.make_context(program, ["--help"], resilient_parsing=True) as outer:
        outer.info_name = program
        with click.Context(group.commands[command], outer, command, terminal_width=110) as context:
            return group.commands[command].get_help(context)


def words_of(text: str) -> list[list[str]]:
    """Commands of a shell's lines, without variables before, files and comments behind them."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    for words in commands:
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words[:1] == ["torchrun"]:
            words[: words.index("m2d_training") + 1] = ["m2d-train"]
        if ">" in words:
            del words[words.index(">") :]
    return [words for words in commands if words]


def examples_of(program: str, command: str) -> list[list[str]]:
    """Commands that a command's own help shows."""
    text = re.split(r"Examples?:\n", help_of(program, command))[-1].split("\n\n")[0]
    return [words for words in words_of(text) if words[0] in PROGRAMS]


PRINTED = {
    " ".join(words): words
    for commands in (
        *(words_of(block) for path in DOCUMENTS for block in blocks(path, "bash")),
        *(examples_of(*command) for command in COMMANDS),
    )
    for words in commands
    if words[0] in PROGRAMS
}


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_of_each_command_shows_how_it_is_called(program, command):
    examples = examples_of(program, command)
    assert [program, command] in [words[:2] for words in examples]
    for parameter in PROGRAMS[program].commands[command].params:
        is_told = isinstance(parameter, click.Argument) or parameter.hidden or parameter.help
        assert is_told, f"{program} {command} does not say what {parameter.name} is"


@pytest.mark.parametrize("words", PRINTED.values(), ids=PRINTED)
def test_a_printed_command_is_one_that_the_program_takes(words):
    program, name, *arguments = words
    command = PROGRAMS[program].commands[name]
    values = command.make_context(name, arguments).params
    if name in PRESETS:
        apply_settings(PRESETS[name](values["preset"]), values["settings"])
    model = values.get("model") or values.get("teacher") or ""
    if OF_THE_AUTHORS.match(model):
        assert model in m2d_hub.list_models()


@pytest.fixture(scope="module")
def stands_in(tmp_path_factory):
    """A small model with tags and a text space, for the published ones that a test cannot download."""
    torch.manual_seed(0)
    encoder = m2d_hub.EncoderConfig(input_size=(80, 208), embed_dim=64, depth=2)
    clap = ClapConfig(dim=16, audio_hidden_dim=64, text_dim=16)
    labels = tuple(f"sound {index}" for index in range(5))
    config = m2d_hub.ModelConfig(encoder=encoder, head=HeadConfig(5), labels=labels, clap=clap)
    folder = tmp_path_factory.mktemp("model")
    m2d_hub.M2D(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(clips, tmp_path, monkeypatch):
    """A working folder with the files that README speaks of."""
    for name in ("dog.wav", "a.wav", "rain.wav", "street.wav", "recordings/in/dog.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / "speech_it_1.wav", tmp_path / name)
    shutil.copy(clips / "tabla_stroke.flac", tmp_path / "b.flac")
    splits = {"1": "train", "2": "train", "3": "valid", "4": "test"}
    header, *rows = (ROOT / "examples" / "clips.csv").read_text().splitlines()
    assert header == "file,label,split"
    named = [row.replace("../tests/data", str(clips)).rsplit(",", 1) for row in rows]
    lines = [header, *(f"{row},{splits[fold]}" for row, fold in named)]
    (tmp_path / "labelled.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readmes_python_runs_from_top_to_bottom(folder, stands_in, monkeypatch):
    load = m2d_hub.load_model

    def load_here(name, device="cpu", **options):
        assert name in m2d_hub.list_models()
        return load(name if name == "m2d-mini" else stands_in, device="cpu", **options)

    encode = {"encode_text": lambda self, texts, normalize: torch.ones(len(texts), 16)}
    monkeypatch.setattr(m2d_hub, "load_model", load_here)
    for name, method in encode.items():  # a text encoder is another download
        monkeypatch.setattr(m2d_hub.M2D, name, method)
    values = {"waveform": torch.zeros(44_100)}
    first, *others = blocks(ROOT / "README.md", "python")
    exec(first, values)
    assert values["clip"].shape == (1, 1536)
    for block in others:
        for printed, smaller in SMALLER.items():
            block = block.replace(printed, smaller)
        exec(block, values)
    assert values["similarity"].shape == (2, 2)
    assert values["frames"].mask.shape == values["frames"].features.shape[:2]


RUNS_OFFLINE = [
    "m2d-hub embed recordings/ --out embeddings.parquet",
    "m2d-hub plot dog.wav --out dog.png",
    "m2d-train linear-eval --model m2d-mini --data labelled.csv --out runs/eval",
    "m2d-hub tag dog.wav --model runs/eval/model",
    "m2d-train prepare recordings/ --out shards/ --split-s 10",
]


@pytest.mark.slow
def test_readmes_commands_run_as_printed_from_the_shell(folder):
    readme = re.sub(r" +# .*", "", (ROOT / "README.md").read_text(encoding="utf-8")).splitlines()
    assert [line for line in RUNS_OFFLINE if line not in readme] == []
    scripts = {**ONE_THREAD, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    answer = subprocess.run(
        ["bash", "-ec", "\n".join(RUNS_OFFLINE)],
        env={**scripts, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert m2d_hub.load_model("runs/eval/model", device="cpu").labels == ["music", "nature", "speech"]
    assert {"embeddings.parquet", "dog.png", "shards"} <= {path.name for path in folder.iterdir()}
