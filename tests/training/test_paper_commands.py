"""The commands of docs/paper.md, run as printed: small models on made-up data sets in the published layouts.

Models that would be downloaded are replaced by small ones, options shorten the trainings, and loops run for
their first and last value.
"""

from __future__ import annotations

import glob
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from m2d_training.cli.main import main
from m2d_training.finetuning.presets import load_finetune_preset
from m2d_training.pretraining.presets import load_preset
from m2d_training.runs.settings import apply_settings
from m2d_training.suites.run import parse_suite_settings
from m2d_training.suites.tasks import find_suite

import m2d_hub
from m2d_hub.config import ClapConfig, EncoderConfig, ModelConfig

from ..conftest import TEXT_DIM
from .published import write_all

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
SECTIONS = {
    title: "".join(blocks)
    for title, section in re.findall(r"^## (.*?)$\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    if (blocks := re.findall(r"^```bash\n(.*?)^```$", section, re.M | re.S))
}
NAMED = re.compile(r"(?<![\w.])(m2d-(?:s-[456]s|speech-80x4|x-\w+|image)|as2m|as20k|vc1)(?![\w-])")
SHORT = "batch_size=2 accumulate_steps=1 warmup_epochs=0"
SMALL = {
    "pretrain": f"{SHORT} epochs=2 keep_every_epochs=1 min_list_size=0 analyse_every_steps=0 "
    "embed_dim=64 depth=1 predictor_dim=64 predictor_depth=1 predictor_head_width=32",
    "finetune": f"{SHORT} epochs=1",
    "linear": "max_epochs=2",
}
ROWS = [line.split("|")[1:4] for line in PAGE.splitlines() if line.startswith(("| Table", "| Figure"))]


def commands_of(section):
    """Words of each command of a section. Loops are unrolled when they are reached: first and last value."""
    values, body = None, []
    for line in SECTIONS[section].replace("\\\n", " ").splitlines():
        if loop := re.fullmatch(r"for (\w+) in (.+); do", line):
            name, values, body = loop[1], loop[2].split(), []
        elif line == "done":
            found = [path for value in values for path in sorted(glob.glob(value)) or [value]]
            for value in (found[0], found[-1]):
                for inner in body:
                    inner = inner.replace(f"${{{name}##*/}}", Path(value).name).replace(f"${name}", value)
                    yield shlex.split(inner, comments=True)[1:]
            values = None
        elif values:
            body.append(line)
        elif words := shlex.split(line, comments=True):
            yield words[1:]


@pytest.fixture(scope="module")
def world(tmp_path_factory, text_folder):
    """A folder with ``datasets/``, and small models by the names of those that the page prints."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("world")
    write_all(root / "datasets")
    torch.manual_seed(0)
    sizes = {"embed_dim": 64, "depth": 1}
    plain = EncoderConfig(input_size=(80, 208), **sizes)
    space = ClapConfig(
        dim=16, audio_hidden_dim=16, text_dim=TEXT_DIM, text_hidden_dim=16, text_encoder=str(text_folder)
    )
    configs = {
        "m2d-0.7": ModelConfig(encoder=plain),
        "m2d-0.6": ModelConfig(encoder=plain),
        "m2d-as-0.7": ModelConfig(encoder=plain),
        "m2d-0.7-16x4": ModelConfig(encoder=EncoderConfig(input_size=(80, 200), patch_size=(16, 4), **sizes)),
        "m2d-clap-2024": ModelConfig(encoder=plain, clap=space),
    }
    names = {}
    for name, config in configs.items():
        m2d_hub.M2D(config).save_pretrained(root / "models" / name)
        names[name], names[f"random:{name}"] = (f"{kind}{root / 'models' / name}" for kind in ("", "random:"))
    hubert = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7
    )
    transformers.HubertModel(hubert).save_pretrained(root / "models" / "hubert")
    names["hubert-base-l9"] = str(root / "models" / "hubert")
    return root, names


def shortened(words, names):
    """A command with small models, expanded patterns and short trainings."""
    kind, given = words[0], []
    for before, word in zip(["", *words], words, strict=False):
        if before == "--model":
            word = names.get(word, word)
        given += sorted(glob.glob(word)) if "*" in word else [word]
    if kind == "suite":
        given += ["--seeds", "1"]
        kind = "linear" if find_suite(words[1]).is_linear else "finetune"
    if kind == "pretrain":
        preset = load_preset(words[1])
        given += ["--start", names[preset.start]] if preset.start and "--start" not in words else []
        given += (
            ["--teacher", names[preset.teacher]] if preset.teacher and "offline=none" not in words else []
        )
    changes = SMALL.get(kind, "").split()
    return [*given, *(part for change in changes for part in ("--set", change))]


def require_answer(words):
    """Check that a command leaves a complete table, a model, or a list."""
    if "--out" not in words:
        return
    out, kind = Path(words[words.index("--out") + 1]), words[0]
    if kind == "suite":
        tasks = json.loads((out / "suite.json").read_text())["tasks"]
        assert [task["status"] for task in tasks] == ["done"] * len(tasks)
        assert (out / "suite.csv").is_file()
    elif kind == "summarise":
        rows = (out / "summary.csv").read_text().splitlines()
        assert len(rows) == (3 if "--by" in words else 2)
    elif kind == "list":
        assert len(out.read_text().splitlines()) > 2
    elif kind == "pretrain":
        assert (out / "export" / "model.safetensors").is_file()
    else:
        assert 0 <= json.loads((out / "report.json").read_text())["value"] <= 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_of_each_section_run_to_their_tables(section, world, tmp_path, monkeypatch):
    root, names = world
    (tmp_path / "datasets").symlink_to(root / "datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for words in commands_of(section):
        result = CliRunner().invoke(main, shortened(words, names))
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
        require_answer(words)


def test_each_row_of_the_table_is_printed_with_a_command():
    printed = "".join(block for block in SECTIONS.values())
    tables = {
        name
        for kind, first, second in re.findall(r"# *(Tables?|Figures?) (\w+)(?: and (\w+))?", printed)
        for name in (f"{kind.rstrip('s')} {first}", f"{kind.rstrip('s')} {second}")
    }
    assert len(ROWS) == 19
    for name, _, command in ROWS:
        assert command.strip() == "–" or name.strip() in tables


def test_presets_that_the_page_names_exist():
    names = set(NAMED.findall(PAGE))
    assert len(names) >= 8
    for name in names:
        load_preset(name) if name.startswith("m2d-") else load_finetune_preset(name)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_have_valid_options_and_settings(section):
    commands = list(commands_of(section))
    assert commands
    for words in commands:
        command = main.commands[words[0]]
        options = command.make_context(words[0], words[1:]).params
        texts = options.get("settings") or ()
        if words[0] == "pretrain":
            apply_settings(load_preset(options["preset"]).config, texts)
        elif words[0] == "suite":
            parse_suite_settings(options["suite"], texts)
