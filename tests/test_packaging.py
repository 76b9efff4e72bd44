"""Contents of the wheel and the source distribution. ``DIST=dist`` checks those in that folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/m2d-hub/m2d-hub/blob/main/"
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def tree() -> list[str]:
    """Files of the checkout as POSIX paths."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout to compare with")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def unpacked(tree, tmp_path_factory) -> Path:
    """The unpacked source distribution: from ``DIST``, or built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    if "DIST" in os.environ:
        dist = ROOT / os.environ["DIST"]
    else:
        copy, dist = folder / "copy", folder / "dist"
        for name in tree:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        build(copy, "build_sdist", dist)
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return only(folder / "unpacked", "*")


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> Path:
    """The wheel: from ``DIST``, or built from the source distribution."""
    if "DIST" in os.environ:
        return only(ROOT / os.environ["DIST"], "*.whl")
    dist = tmp_path_factory.mktemp("wheel")
    build(unpacked, "build_wheel", dist)
    return only(dist, "*.whl")


@pytest.fixture(scope="module")
def wheel_files(wheel) -> set[str]:
    """Files in the wheel; the metadata folder is called ``dist-info``."""
    with zipfile.ZipFile(wheel) as archive:
        return {re.sub(r"^m2d_hub-[^/]*\.dist-info", "dist-info", name) for name in archive.namelist()}


def build(source: Path, hook: str, out: Path) -> None:
    """Call a hook of the build backend in a source folder."""
    out.mkdir(exist_ok=True)
    answer = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(out)], cwd=source, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


def metadata_of(wheel: Path) -> Message:
    """Metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def only(folder: Path, pattern: str) -> Path:
    """Return the only match of a pattern."""
    [path] = folder.glob(pattern)
    return path


def test_wheel_contains_exactly_the_modules_and_data_files(tree, wheel_files):
    expected = {name for name in tree if name.startswith("m2d_hub/")}
    expected |= {
        f"m2d_training/{name.removeprefix('training/')}" for name in tree if name.startswith("training/")
    }
    assert {"m2d_hub/py.typed", "m2d_training/py.typed"} <= expected
    assert "m2d_hub/weights/m2d-mini/model.safetensors" in expected
    assert "m2d_hub/weights/m2d-mini-tags/model.safetensors" in expected
    assert {name for name in wheel_files if not name.startswith("dist-info/")} == expected
    assert {"dist-info/licenses/LICENSE", "dist-info/licenses/MODEL_CARD.md"} <= wheel_files


def test_wheel_lists_the_python_versions_that_ci_tests(wheel):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    metadata = metadata_of(wheel)
    claimed = [
        found for text in metadata.get_all("Classifier") for found in re.findall(r":: (3\.\d+)$", text)
    ]
    assert claimed == tested
    assert metadata["Requires-Python"] == f">={tested[0]}"
    assert workflow["jobs"]["install"]["strategy"]["matrix"]["python"] == tested


def test_citation_has_the_version(wheel):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == metadata_of(wheel)["Version"]


def test_changelog_dates_each_version_and_groups_its_entries(wheel):
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *versions = re.findall(r"^## (.+)$", text, re.M)
    assert unreleased == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in versions)
    assert versions[0].startswith(f"{metadata_of(wheel)['Version']} - ")
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {"Added", "Changed", "Removed", "Fixed"}


def test_source_distribution_contains_the_whole_checkout(tree, unpacked):
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert set(tree) - held == set()


@pytest.mark.slow
def test_tests_of_the_source_distribution_can_be_collected(unpacked):
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=unpacked,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout[-2_000:]


def test_links_of_the_readme_are_absolute(tree):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    addresses = [*re.findall(r"\]\(([^)]+)\)", readme), *re.findall(r"^\[.+\]: (.+)$", readme, re.M)]
    assert [address for address in addresses if not address.startswith("https://")] == []
    inside = [address.removeprefix(REPOSITORY) for address in addresses if address.startswith(REPOSITORY)]
    assert inside
    assert set(inside) <= set(tree)
