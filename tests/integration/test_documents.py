"""Printed commands and examples (README, docs, help) are valid, and those that work offline run."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from m2d_training.cli.main import main as train_main
from m2d_training.finetuning.presets import load_finetune_preset
from m2d_training.pretraining.presets import load_preset
from m2d_training.runs.settings import apply_settings

import m2d_hub
from m2d_hub.cli.main import main as hub_main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCUMENTS}
PROGRAMS: dict[str, click.Group] = {"m2d-hub": hub_main, "m2d-train": train_main}
PRESETS = {"pretrain": lambda name: load_preset(name).config, "finetune": load_finetune_preset}
COMMANDS = [(program, name) for program, group in PROGRAMS.items() for name in group.commands]
# A comment before a block states why the block is not run.
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```(python|bash)\n(.*?)^```$", re.M | re.S)
# Pages that run in every push; all others are slow.
QUICK = {"README.md", "docs/guides/data.md", "docs/guides/labels.md", "docs/guides/time.md"}
# Settings that shorten the trainings of a page.
SHORTER = {
    "epochs=3": "epochs=1, batch_size=2",
    'finetune("small"': 'finetune("small", epochs=1, min_steps=0',
}
AUTHORS_MODEL = re.compile(r"m2d-(as|clap|0)")


def commands_in(text: str) -> list[list[str]]:
    """Words of each command in shell code, with loops unrolled, without variables and redirections."""
    text = re.sub(r"\\\n\s*", "", text)
    for name, values, body in re.findall(r"^for (\w+) in (.+?); do\n(.*?)^done$", text, re.M | re.S):
        variable = re.compile(rf"\${name}\b|\${{{name}##\*/}}")
        unrolled = "".join(variable.sub(value, body) for value in values.split())
        text = text.replace(f"for {name} in {values}; do\n{body}done", unrolled)
    commands = [shlex.split(line, comments=True) for line in text.splitlines()]
    for words in commands:
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words[:1] == ["torchrun"]:
            words[: words.index("m2d_training") + 1] = ["m2d-train"]
        if ">" in words:
            del words[words.index(">") :]
    return [words for words in commands if words and words[0] in PROGRAMS]


def examples_of(program: str, command: str) -> list[list[str]]:
    """Commands in the help text of a command."""
    group = PROGRAMS[program]
    with group.make_context(program, ["--help"], resilient_parsing=True) as outer:
        outer.info_name = program
        with click.Context(group.commands[command], outer, command, terminal_width=110) as context:
            text = group.commands[command].get_help(context)
    return commands_in(re.split(r"Examples?:\n", text)[-1].split("\n\n")[0])


PRINTED = {
    " ".join(words): words
    for commands in (
        *(commands_in(code) for text in PAGES.values() for _, language, code in BLOCK.findall(text)),
        *(examples_of(*command) for command in COMMANDS),
    )
    for words in commands
}


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_shows_an_example_and_describes_every_option(program, command):
    assert [program, command] in [words[:2] for words in examples_of(program, command)]
    for parameter in PROGRAMS[program].commands[command].params:
        described = isinstance(parameter, click.Argument) or parameter.hidden or parameter.help
        assert described, f"{program} {command} does not describe {parameter.name}"


def test_every_printed_command_is_valid(monkeypatch):
    for text, (program, name, *arguments) in PRINTED.items():
        command = PROGRAMS[program].commands[name]
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                monkeypatch.setattr(parameter.type, "exists", False)  # the files of the examples
        values = command.make_context(name, arguments).params
        if name in PRESETS:
            apply_settings(PRESETS[name](values["preset"]), values["settings"])
        model = values.get("model") or values.get("teacher") or ""
        assert not AUTHORS_MODEL.match(model) or model in m2d_hub.list_models(), text


def test_every_python_example_compiles():
    for page, text in PAGES.items():
        for _, language, code in BLOCK.findall(text):
            if language == "python":
                ast.parse(code, page)


RUNNABLE = [page for page, text in PAGES.items() if any(not reason for reason, *_ in BLOCK.findall(text))]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page not in QUICK)) for page in RUNNABLE]
)
def test_examples_run_as_printed(page, clips, tmp_path, monkeypatch):
    shutil.copytree(clips, tmp_path / "recordings", ignore=shutil.ignore_patterns("*.md"))
    shutil.copy(clips / "speech_en_1.wav", tmp_path / "dog.wav")
    listed = (ROOT / "examples" / "clips.csv").read_text("utf-8")
    (tmp_path / "labelled.csv").write_text(listed.replace("../tests/data/", "recordings/"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {"__name__": page}
    for reason, language, code in BLOCK.findall(PAGES[page]):
        if reason:
            continue
        if language == "python":
            for printed, shorter in SHORTER.items():
                code = code.replace(printed, shorter)
            exec(compile(code, page, "exec"), names)
        else:
            for program, *arguments in commands_in(code):
                PROGRAMS[program].main(arguments, standalone_mode=False)
