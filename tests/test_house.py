"""The house's order: a room imports only rooms below it; heavy libraries wait for use."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up; rooms of one tuple are siblings, and none of them imports another.
HUB_LAYERS = [
    *(
        "errors",
        "checks",
        "config",
        "results",
        "io",
        "look",
        "audio",
        "windows",
        "nn",
        "inference",
    ),
    *("pretrained", ("export", "stream"), "model", "hub", ("plots", "zero_shot"), "corpus"),
    *(("clients", "demo"), "cli"),
]
TRAINING_LAYERS = [
    *("data", "evaluation", "runs", ("linear", "pretraining", "finetuning"), "suites", "cli"),
]
PACKAGES = [("m2d_hub", "m2d_hub", HUB_LAYERS), ("m2d_training", "training", TRAINING_LAYERS)]

HEAVY = {
    "accelerate",
    "gradio",
    "matplotlib",
    "nnAudio",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "sounddevice",
    "soundfile",
    "tensorboard",
    "timm",
    "torchaudio",
    "torchvision",
    "transformers",
    "webdataset",
}


def modules_of(folder: str) -> dict[str, ast.Module]:
    """Syntax trees of a package's own modules by dotted name, without ``__init__`` and ``__main__``."""
    paths = [path for path in (ROOT / folder).rglob("*.py") if not path.stem.startswith("__")]
    names = {path: ".".join(path.relative_to(ROOT / folder).with_suffix("").parts) for path in paths}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in sorted(names.items())}


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        yield child
        yield from running_nodes(child)


def imported(tree: ast.Module, package: str, module: str) -> set[str]:
    """Absolute names that a module imports when it runs; ``from a import b`` gives ``a.b``."""
    names = set()
    for node in running_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = f"{package}.{module}".split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def imports_within(package: str, folder: str) -> dict[str, set[str]]:
    """For each module those of its package that it imports; ``''`` stands for the package itself."""
    modules = modules_of(folder)

    def own(name: str) -> str:
        inside = name.removeprefix(package).lstrip(".")
        return next((module for module in modules if f"{inside}.".startswith(f"{module}.")), "")

    return {
        module: {own(name) for name in imported(tree, package, module) if name.split(".")[0] == package}
        for module, tree in modules.items()
    }


def room_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize(("package", "folder", "layers"), PACKAGES)
def test_rooms_import_only_rooms_below_them(package, folder, layers):
    heights = {
        room: height
        for height, layer in enumerate(layers)
        for room in (layer if isinstance(layer, tuple) else (layer,))
    }
    wrong = [
        f"{package}.{module} imports {used or 'the package itself'}"
        for module, names in imports_within(package, folder).items()
        for used in sorted(names)
        if room_of(used) != room_of(module)
        and heights.get(room_of(used), len(layers)) >= heights[room_of(module)]
    ]
    assert not wrong


@pytest.mark.parametrize(("package", "folder", "layers"), PACKAGES)
def test_modules_import_each_other_in_no_circle(package, folder, layers):
    TopologicalSorter(imports_within(package, folder)).prepare()  # raises CycleError


def test_clients_do_not_import_each_other():
    own_code = ("clients.transformers", "clients.modeling_m2d")  # the program, and what it writes for it
    wrong = [
        f"{module} imports {used}"
        for module, names in imports_within("m2d_hub", "m2d_hub").items()
        for used in names
        if room_of(module) == room_of(used) == "clients" and (module, used) != own_code
    ]
    assert not wrong


def test_hub_never_imports_training():
    wrong = [
        f"m2d_hub.{module} imports {used}"
        for module, tree in modules_of("m2d_hub").items()
        for used in imported(tree, "m2d_hub", module)
        if used.split(".")[0] in ("m2d_training", "training")
    ]
    assert not wrong


@pytest.mark.parametrize("module", ["", ".hub", ".cli.main", ".corpus.embed_files"])
def test_import_loads_no_heavy_library(module):
    code = f"import json, sys, m2d_hub{module}; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(name.split(".")[0] for name in json.loads(answer.stdout))
