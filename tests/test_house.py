"""The house's order: modules import only modules above them in their list; heavy libraries wait for use."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HUB_ORDER = """
    errors config results labels registry storage provenance catalog archive download positional linear
    frontend text encoder head clap windows windowed checkpoint convert layout store audio inference
    publish model quantize repository hub export modeling_m2d zero_shot plots records parquet formats
    sources output_job outputs embedding console embed_command export_command cli
"""

TRAINING_ORDER = """
    config presets settings masking schedules losses noise analysis sampling optimizer shards manifest
    labelled_rows labelled metrics charts report crops features images data predictor target_encoder
    offline teachers inputs pretrainer checkpoint start record loop sources clip_encoder feature_cache
    linear_layers linear_fit linear_rounds linear_options linear_model linear_report linear_folder
    linear_eval prepare resolved run augment finetune_config finetune_presets finetune_model finetune_data
    finetune_optimizer finetune_head finetune_loop finetune_member finetune console finetune_command
    eval_command cli
"""

# A method that is part of the model's contract but whose work is done further down; a command that is
# asked to work with a client's program.
ALLOWED = {("model", "export"), ("embed_command", "clients.ray")}

HEAVY = {
    "accelerate",
    "matplotlib",
    "nnAudio",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
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


def imported(tree: ast.Module, package: str) -> set[str]:
    """Absolute names that a module imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def own_modules(names: set[str], package: str, known: list[str]) -> set[str]:
    """Which of a package's modules are among ``names``; '' stands for the package itself."""
    own = {name.removeprefix(package).lstrip(".") for name in names if name.split(".")[0] == package}
    return {next((module for module in known if f"{name}.".startswith(f"{module}.")), "") for name in own}


PACKAGES = [("m2d_hub", "m2d_hub", HUB_ORDER.split()), ("m2d_training", "training", TRAINING_ORDER.split())]


@pytest.mark.parametrize(("package", "folder", "order"), PACKAGES)
def test_every_module_has_its_place_in_the_order(package, folder, order):
    found = [name for name in modules_of(folder) if not name.startswith("clients.")]
    assert sorted(found) == sorted(order)


@pytest.mark.parametrize(("package", "folder", "order"), PACKAGES)
def test_modules_import_only_modules_above_them(package, folder, order):
    wrong = []
    modules = modules_of(folder)
    for name in filter(modules.get, order):
        above = order[: order.index(name)]
        for used in own_modules(imported(modules[name], package), package, list(modules)):
            if used not in above and (name, used) not in ALLOWED:
                wrong.append(f"{package}.{name} imports {used or 'the package itself'}")
    assert not wrong


def test_clients_do_not_import_each_other():
    wrong = [
        f"{name} imports {used}"
        for name, tree in modules_of("m2d_hub").items()
        if name.startswith("clients.")
        for used in imported(tree, "m2d_hub")
        if used.startswith("m2d_hub.clients")
    ]
    assert not wrong


def test_hub_never_imports_training():
    wrong = [
        f"m2d_hub.{name} imports {used}"
        for name, tree in modules_of("m2d_hub").items()
        for used in imported(tree, "m2d_hub")
        if used.split(".")[0] in ("m2d_training", "training")
    ]
    assert not wrong


@pytest.mark.parametrize("module", ["m2d_hub", "m2d_hub.hub", "m2d_hub.cli", "m2d_hub.embedding"])
def test_import_loads_no_heavy_library(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(name.split(".")[0] for name in json.loads(answer.stdout))
