"""The notebooks, run cell by cell as a reader would, on the clips that lie beside them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
PATIENCE_S = 300  # for a cell


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def test_there_are_three_and_the_examples_page_names_each():
    page = (ROOT / "docs" / "guides" / "notebooks.md").read_text("utf-8")
    assert len(NOTEBOOKS) == 3
    assert all(f"examples/notebooks/{path.name}" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_was_kept_and_names_no_machine(path):
    outputs = [output for cell in cells_of(path, "code") for output in cell["outputs"]]
    assert {"error"}.isdisjoint(output["output_type"] for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    told = "".join("".join(output.get("text", ())) for output in outputs)
    assert told and not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)/", told)
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_the_first_cell_to_the_last(path, tmp_path, monkeypatch):
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
        notebook, timeout=PATIENCE_S, kernel_name="python3", resources=resources
    ).execute()
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "error" not in kinds and {"display_data", "execute_result"} & set(kinds)
    assert sorted(file.name for file in folder.iterdir()) == [other.name for other in NOTEBOOKS]
