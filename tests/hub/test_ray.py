"""The script for Ray Data in the guide to large corpora."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "corpora.md"
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # no token in the home folder

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two processors, as small as Ray makes them."""
    ray = pytest.importorskip("ray", reason="needs m2d-hub[ray]")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    yield
    ray.shutdown()


def test_the_script_of_the_guide_writes_each_file_once_and_resumes(cluster, tiny, clips, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    [script] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    script = script.replace("/shared", str(tmp_path)).replace("m2d-as-0.7", str(tmp_path / "tiny"))
    script = script.replace("concurrency=8", "concurrency=1")
    paths = [str(path) for path in sorted(clips.glob("*.wav"))]
    for count in (2, len(paths), len(paths)):
        (tmp_path / "list.csv").write_text("\n".join(["file", *paths[:count]]))
        exec(script, {})
        (tmp_path / "corpus" / "of_a_killed_worker.parquet").write_bytes(b"PAR1 incomplete")
    written = pyarrow.dataset.dataset(tmp_path / "corpus", format="parquet", exclude_invalid_files=True)
    table = written.to_table().to_pydict()
    assert sorted(table["path"]) == paths
    for path, embedding in zip(table["path"], table["embedding"], strict=True):
        np.testing.assert_allclose(np.array(embedding), tiny.encode_clip(path)[0].numpy(), atol=1e-5)
