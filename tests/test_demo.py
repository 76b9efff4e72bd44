"""The first commands of the README, and the sample clips."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
CLIPS = sorted(path for path in DATA.iterdir() if path.suffix != ".md")
FREE = {"CC0", "CC BY 3.0", "CC BY-SA 3.0"}


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_table():
    """Cells of the table in the README of the clips, by file name."""
    lines = (DATA / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows}


def test_table_of_clips_matches_the_files():
    table = read_table()
    assert sorted(table) == [path.name for path in CLIPS]
    for path in CLIPS:
        _, _, rate, channels, seconds, *_, licence = table[path.name]
        info = soundfile.info(path)
        assert (int(rate), int(channels)) == (info.samplerate, info.channels), path.name
        assert float(seconds) == pytest.approx(info.duration, abs=0.006), path.name
        assert licence in FREE, path.name


def test_neighbours_are_ranked_by_cosine_and_marked_by_category(demo):
    # Vectors of different lengths at angles of 0, 10 and 50 degrees.
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 50.0]))
    clips = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.2]])
    lines = demo.results_table(
        ["dog_1.wav", "dog_2.wav", "rain_1.wav"], clips, ["Dog", "Dog", "Rain"]
    ).splitlines()
    assert lines[1].split() == ["dog_1.wav", "*", "dog_2.wav", "0.985", "Dog"]
    assert lines[3].split() == ["rain_1.wav", "dog_2.wav", "0.766", "Rain"]
    assert lines[4] == "* same category: 2 of 3 nearest clips"


def test_demo_prints_shapes_neighbours_and_tags_and_writes_a_plot(tmp_path):
    for folder in ("examples", "tests/data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    answer = subprocess.run(
        [sys.executable, tmp_path / "examples" / "demo.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    assert re.search(rf"encode_clip of {len(CLIPS)} files, 8 to 48 kHz: \({len(CLIPS)}, \d+\)", answer.stdout)
    assert all(f"\n{path.name}" in answer.stdout for path in CLIPS)
    spoken = [line for line in answer.stdout.splitlines() if line.startswith("speech_")]
    assert spoken and all("  Speech " in line for line in spoken)
    assert (tmp_path / "demo" / "bang_fireworks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_sets_up_an_environment_once(target, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)

    def planned():
        answer = subprocess.run(
            ["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return answer.stdout

    assert "python3 -m venv .venv" in planned() and '--editable ".[dev]"' in planned()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    assert "venv .venv" not in planned() and "pip" not in planned()


def test_readme_starts_with_the_commands_that_ci_runs_too():
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert first[1].split("\n")[:2] == ["make demo", "make test"]
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line.startswith(("set ", "make "))]
    assert commands == ["set -euo pipefail", "make lint", "make types", "make test", "make test-slow"]
