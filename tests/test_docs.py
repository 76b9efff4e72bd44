"""The site: pages and links that are there, names that are all documented, examples that run as printed."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import m2d_training
import pytest
import torch
import yaml
from m2d_training.cli.main import main as m2d_train

import m2d_hub
from m2d_hub.cli.main import main as m2d_hub_command

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
COMMANDS = {"m2d-hub": m2d_hub_command, "m2d-train": m2d_train}
# A comment before a block says why it is not run; all others are.
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```(python|bash)\n(.*?)^```$", re.M | re.S)
PROSE_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)
DOCUMENTS = [path for path in ROOT.rglob("*.md") if not {".venv", "site", "build"} & set(path.parts)]
NAMED_PATH = re.compile(
    r"\b(?:m2d_hub|training|tests|benchmarks|recipes|docs|examples|\.github)/[\w./-]*\w/?"
)
NAMED_TEST = re.compile(r"(?:`|::)(test_\w+)(?!\.py)\b")
AT_GITHUB = "https://github.com/m2d-hub/m2d-hub/blob/main/"


def nav_pages(part: Any) -> list[str]:
    """Pages of the site's menu, at any depth."""
    if isinstance(part, str):
        return [part]
    inner = part.values() if isinstance(part, dict) else part
    return [page for one in inner for page in nav_pages(one)]


def text_of(path: Path) -> str:
    """A page with what it includes."""
    include = re.compile(r'^--8<-- "(.+)"$', re.M)
    return include.sub(lambda found: (ROOT / found[1]).read_text("utf-8"), path.read_text("utf-8"))


def anchors_of(path: Path) -> set[str]:
    """Anchors of a page's headings, as Markdown's table of contents makes them of plain ones."""
    prose = re.sub(r"^```.*?^```$", "", text_of(path), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def links_of(path: Path) -> list[str]:
    """Addresses that a page's prose links to."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text_of(path), flags=re.M | re.S)
    return [inline or named for inline, named in PROSE_LINK.findall(prose)]


def test_the_menu_has_every_page_once():
    menu = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(menu) == sorted(PAGES)


@pytest.mark.parametrize("path", [*PAGES.values(), ROOT / "README.md"], ids=[*PAGES, "README.md"])
def test_links_lead_somewhere(path):
    for link in links_of(path):
        here = ROOT if link.startswith(AT_GITHUB) else path.parent
        place, _, anchor = link.removeprefix(AT_GITHUB).partition("#")
        if "://" in place:
            continue
        target = here / place if place else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_tests_that_a_document_names_are_there(path):
    text = path.read_text("utf-8")
    named = [name for name in NAMED_PATH.findall(text) if not Path(name).stem.isupper()]  # NAME.py
    assert [name for name in named if not (ROOT / name).exists()] == []
    tests = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in NAMED_TEST.findall(text) if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("package", [m2d_hub, m2d_training])
def test_the_reference_renders_every_public_name(package):
    rendered = re.findall(
        rf"^::: {package.__name__}\.(\w+)$", (PAGES[f"api/{package.__name__}.md"]).read_text("utf-8"), re.M
    )
    assert sorted(rendered) == sorted(set(package.__all__) - {"__version__"})


@pytest.mark.parametrize(
    "page", [name for name, path in PAGES.items() if "```python" in path.read_text("utf-8")]
)
def test_python_on_a_page_parses(page):
    for _, language, code in BLOCK.findall(text_of(PAGES[page])):
        if language == "python":
            ast.parse(code, page)


@pytest.mark.parametrize("name", m2d_hub.list_models())
def test_models_are_told_with_their_licence(name):
    info = m2d_hub.model_info(name)
    [row] = re.findall(rf"^\| `{re.escape(name)}` .*$", PAGES["models.md"].read_text("utf-8"), re.M)
    told = {info.contents, info.reported or "–", info.license, f"{info.sample_rate // 1000} kHz"}
    assert told <= {cell.strip() for cell in row.split("|")} and info.source in row


WRONG_CALLS = {
    "audio": lambda model: model.encode_clip("nothing.wav"),
    "shape": lambda model: model.encode_clip(torch.zeros(2000, 2)),
    "bytes": lambda model: model.encode_clip(b"RIFF"),
    "empty": lambda model: model.encode_clip([]),
    "name": lambda model: m2d_hub.load_model("m2d-as-0.8"),
    "cache": lambda model: m2d_hub.load_model("m2d-0.7", cache_dir="cache", local_files_only=True),
    "head": lambda model: model.classify("dog.wav"),
    "text": lambda model: model.encode_text(["rain"]),
    "int8": lambda model: m2d_hub.load_model("m2d-mini", dtype="int8", device="cuda"),
    "batch": lambda model: model.encode_clip("dog.wav", batch_size=0),
    "suffix": lambda model: m2d_hub.embed_files("dog.wav", "out.txt"),
    "output": lambda model: m2d_hub.search("dog.wav", "none.npz"),
    "files": lambda model: m2d_hub.find_sources([]),
    "device": lambda model: m2d_hub.load_model("m2d-mini", device="gpu"),
    "dtype": lambda model: m2d_hub.load_model("m2d-mini", dtype="bf16"),
}


def test_errors_are_told_in_their_own_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = m2d_hub.load_model("m2d-mini", device="cpu")
    quoted = re.findall(r"^> (.+)$", PAGES["faq.md"].read_text("utf-8"), re.M)
    assert len(quoted) == len(WRONG_CALLS)
    for call in WRONG_CALLS.values():
        with pytest.raises(m2d_hub.M2DError) as raised:
            call(model)
        assert any(str(raised.value).startswith(text) for text in quoted), raised.value


def run_commands(lines: str) -> None:
    """Runs what a shell block calls of our commands, in this process."""
    for line in lines.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] in COMMANDS:
            COMMANDS[words[0]].main(words[1:], standalone_mode=False)


RUNNABLE = [name for name, path in PAGES.items() if any(not why for why, *_ in BLOCK.findall(text_of(path)))]

SLOW = {"guides/finetune.md", "guides/speed.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in RUNNABLE]
)
def test_examples_run_as_printed(page, clips, tmp_path, monkeypatch):
    shutil.copytree(clips, tmp_path / "recordings", ignore=shutil.ignore_patterns("*.md"))
    shutil.copy(clips / "speech_en_1.wav", tmp_path / "dog.wav")
    listed = (ROOT / "examples" / "clips.csv").read_text("utf-8")
    (tmp_path / "labelled.csv").write_text(listed.replace("../tests/data/", "recordings/"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {"__name__": page}
    for why_not, language, code in BLOCK.findall(text_of(PAGES[page])):
        if not why_not:
            exec(compile(code, page, "exec"), names) if language == "python" else run_commands(code)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    loaded = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"https?://|<link\b[^>]*stylesheet[^>]*https?://"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [page.name for page in pages if loaded.search(page.read_text("utf-8"))] == []
