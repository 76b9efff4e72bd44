"""m2d-mini in float32, bfloat16, 8 bits and ONNX: sizes, times and cosine similarities for MODEL_CARD.md.

    python recipes/m2d-mini/variants.py DATA/dev [--model NAME_OR_FOLDER] [--former NAME_OR_FOLDER]

Cosine similarities compare clip features with those of float32, over ``CLIPS`` random clips of the train
splits of the dev tasks. Times are medians of ``CALLS`` calls on 10 s of noise in one thread; the variants and
``--former`` (a model to compare with, in float32) take turns. Needs ``[onnx]``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from compare import encode_waveform, times
from evaluate import dev_parser, read_tasks
from peers import EncodeWaveform, load_onnx

from m2d_hub import load_model

CLIPS = 400


def onnx_encoder(path: Path) -> EncodeWaveform:
    """Return a function that computes clip features (mean of frames) with ONNX Runtime."""
    run = load_onnx(str(path))
    return lambda waveform: run(waveform[None])[0].mean(axis=0)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Return the cosine similarity of two features (K,)."""
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def megabytes(model: torch.nn.Module) -> float:
    """Return the size of all weights in their data types."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


def table(model_name: str, former: str | None, files: list[str]) -> str:
    """Return Markdown: one row per variant."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": "int8"}
    models = {name: load_model(model_name, device="cpu", dtype=dtype) for name, dtype in types.items()}
    sizes = {name: f"{megabytes(model):.1f} MB" for name, model in models.items()}
    encoders = {name: encode_waveform(model) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        models["float32"].export_onnx(path)
        sizes["ONNX Runtime"] = f"{path.stat().st_size / 1e6:.1f} MB"
        encoders["ONNX Runtime"] = onnx_encoder(path)
    clips = [soundfile.read(file, dtype="float32")[0] for file in files]
    rows = {name: [encode(clip).astype(np.float32) for clip in clips] for name, encode in encoders.items()}
    if former:
        encoders["former model, float32"] = encode_waveform(load_model(former, device="cpu"))
    milliseconds = times(encoders)
    lines = ["| | size | 10 s on one core | cosine with float32: mean (minimum) |", "|---|---|---|---|"]
    for name in encoders:
        own = [cosine(a, b) for a, b in zip(rows[name], rows["float32"], strict=True)] if name in rows else []
        cosines = f"{np.mean(own):.5f} ({min(own):.5f})" if own else ""
        lines.append(f"| {name} | {sizes.get(name, '')} | {milliseconds[name]:.0f} ms | {cosines} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = dev_parser(__doc__)
    parser.add_argument("--model", default="m2d-mini", help="name or model folder")
    parser.add_argument("--former", help="model to compare with: name or folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks = read_tasks(arguments.data)
    files = [file for task in tasks for file in task.only(task.splits == "train").files]
    files = [files[row] for row in np.random.default_rng(0).permutation(len(files))[:CLIPS]]
    print(table(arguments.model, arguments.former, files))


if __name__ == "__main__":
    main()
