"""Documentation: links, file names, public names, quoted messages and the site are correct."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import m2d_training
import pytest
import torch
import yaml

import m2d_hub

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
PROSE_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)
DOCUMENTS = [path for path in ROOT.rglob("*.md") if not {".venv", "site", "build"} & set(path.parts)]
NAMED_PATH = re.compile(
    r"(?<![\w./-])(?:m2d_hub|training|tests|benchmarks|recipes|docs|examples|\.github)/[\w./-]*\w/?"
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
    """Text of a page, with the files that it includes."""
    include = re.compile(r'^--8<-- "(.+)"$', re.M)
    return include.sub(lambda found: (ROOT / found[1]).read_text("utf-8"), path.read_text("utf-8"))


def anchors_of(path: Path) -> set[str]:
    """Anchors of a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", text_of(path), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def links_of(path: Path) -> list[str]:
    """Links of a page, without those in code."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text_of(path), flags=re.M | re.S)
    return [inline or named for inline, named in PROSE_LINK.findall(prose)]


def test_the_menu_has_every_page_once():
    menu = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(menu) == sorted(PAGES)


@pytest.mark.parametrize("path", [*PAGES.values(), ROOT / "README.md"], ids=[*PAGES, "README.md"])
def test_link_targets_exist(path):
    for link in links_of(path):
        folder = ROOT if link.startswith(AT_GITHUB) else path.parent
        file, _, anchor = link.removeprefix(AT_GITHUB).partition("#")
        if "://" in file:
            continue
        target = folder / file if file else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_tests_named_in_a_document_exist(path):
    text = path.read_text("utf-8")
    named = [name for name in NAMED_PATH.findall(text) if not Path(name).stem.isupper()]  # NAME.py
    assert [name for name in named if not (ROOT / name).exists()] == []
    tests = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in NAMED_TEST.findall(text) if f"def {name}(" not in tests] == []


def test_layout_in_the_architecture_page_matches_the_folders():
    layout = re.search(r"^```\n(.*?)^```$", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.M | re.S)
    shown, folder = set(), ROOT
    for line in layout[1].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        folder = folder if line.startswith(" ") else ROOT / names[0]
        shown |= {ROOT / name if not line.startswith(" ") else folder / name for name in names}
    assert [path for path in shown if not path.exists()] == []


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 7_000


@pytest.mark.parametrize("package", [m2d_hub, m2d_training])
def test_api_page_lists_every_public_name(package):
    page = PAGES[f"api/{package.__name__}.md"].read_text("utf-8")
    listed = re.findall(rf"^::: {package.__name__}\.(\w+)$", page, re.M)
    assert sorted(listed) == sorted(set(package.__all__) - {"__version__"})


def test_table_of_models_matches_the_registry():
    page = PAGES["models.md"].read_text("utf-8")
    for name in m2d_hub.list_models():
        info = m2d_hub.model_info(name)
        [row] = re.findall(rf"^\| `{re.escape(name)}` .*$", page, re.M)
        expected = {info.contents, info.reported or "–", info.license, f"{info.sample_rate // 1000} kHz"}
        assert expected <= {cell.strip() for cell in row.split("|")} and info.source in row


WRONG_CALLS = [
    lambda model: model.encode_clip("nothing.wav"),
    lambda model: model.encode_clip(torch.zeros(2000, 2)),
    lambda model: model.encode_clip(b"RIFF"),
    lambda model: model.encode_clip([]),
    lambda model: m2d_hub.load_model("m2d-as-0.8"),
    lambda model: m2d_hub.load_model("m2d-0.7", cache_dir="cache", local_files_only=True),
    lambda model: model.classify("dog.wav"),
    lambda model: model.encode_text(["rain"]),
    lambda model: m2d_hub.load_model("m2d-mini", dtype="int8", device="cuda"),
    lambda model: model.encode_clip("dog.wav", batch_size=0),
    lambda model: m2d_hub.embed_files("dog.wav", "out.txt"),
    lambda model: m2d_hub.search("dog.wav", "none.npz"),
    lambda model: m2d_hub.find_sources([]),
    lambda model: m2d_hub.load_model("m2d-mini", device="gpu"),
    lambda model: m2d_hub.load_model("m2d-mini", dtype="bf16"),
]


def test_troubleshooting_page_quotes_messages_word_for_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = m2d_hub.load_model("m2d-mini", device="cpu")
    quoted = re.findall(r"^> (.+)$", PAGES["faq.md"].read_text("utf-8"), re.M)
    assert len(quoted) == len(WRONG_CALLS)
    for call in WRONG_CALLS:
        with pytest.raises(m2d_hub.M2DError) as raised:
            call(model)
        assert any(str(raised.value).startswith(text) for text in quoted), raised.value


@pytest.mark.slow
def test_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"https?://|<link\b[^>]*stylesheet[^>]*https?://"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [page.name for page in pages if loaded.search(page.read_text("utf-8"))] == []
