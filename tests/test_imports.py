"""Importing the package loads no heavy library. The layers are checked by import-linter in ``make lint``."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "av",
    "fsspec",
    "gradio",
    "matplotlib",
    "nnAudio",
    "onnx",
    "onnxruntime",
    "pandas",
    "plotly",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "sounddevice",
    "soundfile",
    "soxr",
    "tensorboard",
    "timm",
    "torchaudio",
    "torchvision",
    "transformers",
    "webdataset",
}


@pytest.mark.parametrize("module", ["", ".hub", ".cli.main", ".corpus.embed_files"])
def test_import_loads_no_heavy_library(module):
    code = f"import json, sys, m2d_hub{module}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(name.split(".")[0] for name in json.loads(result.stdout))
