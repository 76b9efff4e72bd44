"""The commands of docs/paper.md, which need data sets: each is one that the command line takes."""

import re
import shlex
from pathlib import Path

import click
import pytest
from m2d_training.cli.main import main
from m2d_training.finetuning.presets import load_finetune_preset
from m2d_training.pretraining.presets import load_preset
from m2d_training.runs.settings import parse_settings, parse_sweep
from m2d_training.suites.tasks import chosen_tasks, find_suite

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith("m2d-train")
]
NAMED = re.compile(r"(?<![\w.])(m2d-(?:s-[456]s|speech-80x4|x-\w+|image)|as2m|as20k|vc1)(?![\w-])")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_taken_with_its_options_fields_and_names(command):
    words = shlex.split(command)[1:]
    with click.Context(main) as context:
        name, subcommand, rest = main.resolve_command(context, words)
        parsed = subcommand.make_context(name, list(rest), parent=context).params
    if name == "pretrain":
        config = load_preset(parsed["preset"]).config
        parse_settings(config, parsed["settings"])
        if parsed["sweep"]:
            parse_sweep(config, parsed["sweep"])
    if name == "suite":
        chosen_tasks(find_suite(parsed["suite"]), parsed["tasks"])


def test_commands_are_found():
    assert len(COMMANDS) >= 8


def test_presets_that_the_table_names_are_there():
    names = set(NAMED.findall(PAGE))
    assert len(names) >= 8
    for name in names:
        load_preset(name) if name.startswith("m2d-") else load_finetune_preset(name)
