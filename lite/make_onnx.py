"""Write the files of the package from the weights in m2d_hub: ``python lite/make_onnx.py``.

The released weights are in float16: they are stored as such, and converted to float32 when a file is loaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from m2d_hub import M2D, load_model

FOLDER = Path(__file__).parent / "m2d_mini"
MIN_VALUES = 1_024  # of a tensor that is worth a conversion
LARGEST_HALF = float(np.finfo(np.float16).max)


def halve(path: Path) -> None:
    """Store tensors that float16 holds exactly in float16, with a conversion to float32."""
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < MIN_VALUES or np.abs(values).max() > LARGEST_HALF:
            continue
        half = values.astype(np.float16)
        if np.array_equal(half, values):
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    del graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_head(model: M2D, path: Path) -> None:
    """Write normalisation and linear layer of a head as one linear layer on clip embeddings."""
    head = model.required_head()
    scale = (head.norm.running_var + head.norm.eps).rsqrt()
    weight = (head.linear.weight * scale).detach()
    bias = (head.linear.bias - weight @ head.norm.running_mean).detach()
    np.savez(path, weight=weight.numpy(), bias=bias.numpy(), labels=np.array(model.labels))


def main() -> None:
    """Run the command."""
    for name in ("m2d-mini", "m2d-mini-tags"):
        model = load_model(name, device="cpu")
        path = FOLDER / f"{name}.onnx"
        model.export_onnx(path)
        halve(path)
        if model.head is not None:
            save_head(model, FOLDER / f"{name}-head.npz")


if __name__ == "__main__":
    main()
