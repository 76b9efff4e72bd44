"""The notebooks, executed on the sample clips."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 300


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_notebooks_page_links_to_each():
    page = (ROOT / "docs" / "guides" / "notebooks.md").read_text("utf-8")
    assert NOTEBOOKS
    assert all(f"examples/notebooks/{path.name}" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_have_plots_and_no_local_paths(path):
    outputs = [output for cell in cells_of(path, "code") for output in cell["outputs"]]
    assert {"error"}.isdisjoint(output["output_type"] for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join("".join(output.get("text", ())) for output in outputs)
    assert printed and not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)/", printed)
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_without_errors(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    for part in ("examples", "tests/data"):
        shutil.copytree(ROOT / part, tmp_path / part)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "examples" / "notebooks"
    notebook = nbformat.read(folder / path.name, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=resources
    ).execute()
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "error" not in kinds and {"display_data", "execute_result"} & set(kinds)
    assert sorted(file.name for file in folder.iterdir()) == [other.name for other in NOTEBOOKS]
