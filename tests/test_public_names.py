"""Public names exist, and examples and README use only public names."""

import ast
import importlib
import re
from pathlib import Path

import m2d_training
import pytest

import m2d_hub

ROOT = Path(__file__).parents[1]
PUBLIC_MODULES = re.compile(r"m2d_hub(\.(export|plots|clients(\.\w+)?))?|m2d_training")
README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.py"))}
PAGES |= {f"README {index}": block for index, block in enumerate(README_BLOCKS)}


@pytest.mark.parametrize("package", [m2d_hub, m2d_training])
def test_every_public_name_exists(package):
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_examples_import_only_public_names(page):
    for node in ast.walk(ast.parse(PAGES[page])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("m2d_hub", "m2d_training")):
            assert PUBLIC_MODULES.fullmatch(node.module), f"{page} imports {node.module}"
            if node.module in ("m2d_hub", "m2d_training"):
                public = importlib.import_module(node.module).__all__
                assert {alias.name for alias in node.names} <= {*public, "plots", "export"}, page
