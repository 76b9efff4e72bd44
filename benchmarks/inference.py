"""Compare the speed of m2d_hub with a plain runtime and an earlier release; write results/inference.md.

    python benchmarks/inference.py [--repeats 5] [--release REVISION] [--parts speed release loading ...]

Weights are the random ViT-Base weights of the parity tests, inputs are generated signals. Both sides of each
comparison run in turn, so that a drift of the machine's speed affects both. The exit status is 1 if the
encoder takes more than 1.15 times the time of the release: the plain runtime shares its matrix product with
us, so the comparison with it cannot show that the product itself became slower.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import torch
from kept import keep
from torch import Tensor

import m2d_hub

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "inference.md"
FOLDER = "m2d_vit_base-80x608p16x16-000000-mr7"
PARTS = ("speed", "release", "loading", "products", "memory", "imports")
RELEASE = "5ab1c0d"  # the revision that later ones are compared with, in a worktree of its own
MAX_SLOWDOWN = 1.15
SIZES = {"decoder_dim": 512, "decoder_depth": 8, "target_encoder": True}


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> dict[str, float]:
    """Time both sides in turn, after a warm-up run of each."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    ratios = [theirs_s / ours_s for ours_s, theirs_s in pairs]
    return {
        "ours_s": median(pair[0] for pair in pairs),
        "theirs_s": median(pair[1] for pair in pairs),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def load_baseline(path: Path) -> torch.nn.Module:
    return load_module(HERE / "baseline.py").Baseline(torch.load(path, weights_only=False)["model"])


def ragged_clips(reference: ModuleType) -> list[np.ndarray]:
    lengths_s = np.random.default_rng(0).uniform(0.5, 14.0, 48)
    return [reference.waveform(float(length), seed=seed) for seed, length in enumerate(lengths_s)]


def product_rates() -> dict[str, float]:
    """Return billions of operations per second of a product with the size of an encoder layer."""
    from m2d_hub.nn.int8_linear import Int8Linear  # not at the top: earlier releases have no such module

    rows = torch.randn(1910, 768)
    layer = torch.nn.Linear(768, 3072)
    quantised, half, half_rows = Int8Linear(layer), copy.deepcopy(layer).bfloat16(), rows.bfloat16()
    onednn = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), len(rows))
    operations = 2 * 1910 * 768 * 3072

    def best(run: Callable[[], object]) -> float:
        return operations / min(seconds(run) for _ in range(30)) / 1e9

    with torch.no_grad():
        return {
            "float32, MKL": best(lambda: layer(rows)),
            "float32, oneDNN": best(lambda: onednn(rows, layer.weight, layer.bias, "none", [], "none")),
            "float32, oneDNN, packed": best(lambda: onednn(rows, packed, layer.bias, "none", [], "none")),
            "bfloat16": best(lambda: half(half_rows)),
            "int8": best(lambda: quantised(rows)),
        }


def encoder_operations(num_tokens: int) -> float:
    """Return the operations of the encoder's products for a window of ``num_tokens`` patch tokens."""
    tokens = num_tokens + 1
    linear = 12 * (4 + 8) * 768 * 768 * 2 * tokens
    attention = 12 * 2 * 2 * tokens * tokens * 768
    return linear + attention + 2 * num_tokens * 256 * 768


def peak_memory(kind: str, weights: Path, audio: Path) -> float:
    """Return the peak memory in GB of a new process that embeds one file."""
    command = [sys.executable, __file__, "--child", kind, str(weights), str(audio)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


def child(kind: str, weights: Path, audio: Path) -> None:
    if kind == "baseline":
        waveform, _ = soundfile.read(audio, dtype="float32")
        load_baseline(weights)(torch.from_numpy(waveform)[None]).mean(dim=1)
    else:
        getattr(m2d_hub.load_model(weights), kind)(audio)
    # Linux's high-water mark of this program alone; ru_maxrss would include the parent's.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def import_seconds(statement: str) -> float:
    code = f"import torch, time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(5)]
    return median(float(run.stdout) for run in runs)


def save_weights(work: Path, reference: ModuleType) -> tuple[Path, Path]:
    """Save the weights as a published checkpoint and as a folder of this package."""
    published = work / FOLDER / "checkpoint-300.pth"
    published.parent.mkdir()
    tensors = {key: torch.from_numpy(value) for key, value in reference.state_dict(**SIZES).items()}
    torch.save({"model": tensors}, published)
    m2d_hub.load_model(published, device="cpu").save_pretrained(work / "own")
    return published, work / "own"


def race_speed(published: Path, own: Path, reference: ModuleType, repeats: int) -> dict[str, Any]:
    model = m2d_hub.load_model(published, device="cpu")
    quantised = m2d_hub.load_model(own, dtype="int8")
    half = m2d_hub.load_model(own, device="cpu", dtype=torch.bfloat16)
    baseline = load_baseline(published)
    minute = reference.waveform(60.0)
    minute_batch = torch.from_numpy(minute)[None]
    clips = ragged_clips(reference)
    clip_batches = [torch.from_numpy(clip)[None] for clip in clips]

    def baseline_minute() -> Tensor:
        return baseline(minute_batch).mean(dim=1)

    difference = model.encode_frames(minute).features - baseline(minute_batch)
    exact, rounded, halved = (side.encode_clip([minute, *clips]) for side in (model, quantised, half))
    return {
        "ragged_s": sum(map(len, clips)) / 16_000,
        "minute": race(lambda: model.encode_clip(minute), baseline_minute, repeats),
        "ragged": race(
            lambda: model.encode_clip(clips),
            lambda: [baseline(batch).mean(dim=1) for batch in clip_batches],
            repeats,
        ),
        "int8": race(lambda: quantised.encode_clip(minute), baseline_minute, repeats),
        "bfloat16": race(lambda: half.encode_clip(minute), baseline_minute, repeats),
        "bfloat16_cosine": torch.cosine_similarity(exact, halved).min().item(),
        "processor": processor(),
        "int8_cosine": torch.cosine_similarity(exact, rounded).min().item(),
        "difference": difference.abs().max().item(),
    }


def processor() -> str:
    """Return the processor's name and the instructions that decide which dtype is fast."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    lines = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    names = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = ", ".join(name for name in names if name in text.split())
    return f"{lines[0] if lines else platform.processor() or platform.machine()} ({flags})"


@contextlib.contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """Check out an earlier revision for as long as the context lasts, and yield its folder."""
    git = ["git", "-C", str(HERE.parent), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*git, "add", "--quiet", "--detach", f"{folder}/tree", revision], check=True)
        try:
            yield Path(folder, "tree")
        finally:
            subprocess.run([*git, "remove", "--force", f"{folder}/tree"], check=True)


def race_release(work: Path, own: Path, reference: ModuleType, repeats: int, release: str) -> dict[str, Any]:
    """Time this version and an earlier revision in turn, each in processes of its own."""
    np.save(work / "minute.npy", reference.waveform(60.0))
    np.savez(work / "ragged.npz", *ragged_clips(reference))
    packaged = Path(m2d_hub.__file__).parent / "weights" / "m2d-mini"
    for name, source in (("base", own), ("mini", packaged)):
        shutil.copytree(source, work / "now" / name)
        weights_for_release(source, work / "release" / name)
    runs: dict[str, list[dict[str, float]]] = {"now": [], "release": []}
    with worktree(release) as tree:
        for _ in range(repeats):
            for side, path in (("now", HERE.parent), ("release", tree)):
                runs[side].append(timed_in_child(work, work / side, path))
    found = {}
    for task in runs["now"][0]:
        now, then = ([run[task] for run in runs[side]] for side in ("now", "release"))
        ratios = [before / after for before, after in zip(then, now, strict=True)]
        found[task] = {
            "ours_s": median(now),
            "theirs_s": median(then),
            "ratio": median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    return {"release": release, "release_races": found}


def weights_for_release(source: Path, folder: Path) -> Path:
    """Copy weights, with the configuration fields that the earlier release knows."""
    folder.mkdir(parents=True)
    shutil.copy(source / "model.safetensors", folder)
    config = json.loads((source / "config.json").read_text())
    del config["own_length_windows"], config["frontend"]["transform"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def timed_in_child(work: Path, models: Path, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", "times", str(models), str(work)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(answer.stdout.splitlines()[-1])


def print_times(models: Path, work: Path) -> None:
    """Print the seconds of each task with the package that this process imports."""
    minute = np.load(work / "minute.npy")
    with np.load(work / "ragged.npz") as arrays:
        ragged = [arrays[name] for name in arrays.files]
    model, small = (m2d_hub.load_model(models / name, device="cpu") for name in ("base", "mini"))
    tasks: dict[str, tuple[int, Callable[[], object]]] = {
        "60 s file, ViT-Base": (3, lambda: model.encode_clip(minute)),
        "10 s, ViT-Base": (5, lambda: model.encode_clip(minute[:160_000])),
        "48 ragged clips, ViT-Base": (1, lambda: model.encode_clip(ragged)),
        "10 s, m2d-mini": (20, lambda: small.encode_clip(minute[:160_000])),
        "load ViT-Base": (10, lambda: m2d_hub.load_model(models / "base", device="cpu")),
        "load m2d-mini": (20, lambda: m2d_hub.load_model(models / "mini", device="cpu")),
    }
    found = {}
    for name, (count, run) in tasks.items():
        run()
        found[name] = min(seconds(run) for _ in range(count))
    print(json.dumps(found))


def race_loading(published: Path, own: Path, repeats: int) -> dict[str, Any]:
    def load() -> object:
        return load_baseline(published)

    return {
        "load_own": race(lambda: m2d_hub.load_model(own, device="cpu"), load, repeats),
        "load_published": race(lambda: m2d_hub.load_model(published, device="cpu"), load, repeats),
    }


def compare_memory(work: Path, published: Path, own: Path, reference: ModuleType) -> dict[str, Any]:
    for minutes in (2, 20):
        soundfile.write(work / f"{minutes}.wav", reference.waveform(60.0 * minutes), 16_000)
    return {
        kind: {
            f"{minutes} minutes": peak_memory(
                kind, published if kind == "baseline" else own, work / f"{minutes}.wav"
            )
            for minutes in (2, 20)
        }
        for kind in ("encode_clip", "encode_frames", "baseline")
    }


def compare_products() -> dict[str, Any]:
    last_window = -(-(6001 - 9 * 608) // 16) * 5
    operations = 9 * encoder_operations(190) + encoder_operations(last_window)
    return {"products": product_rates(), "operations": operations}


def compare_imports() -> dict[str, Any]:
    return {
        "import": import_seconds("import m2d_hub"),
        "import_load_model": import_seconds("from m2d_hub import load_model"),
    }


def run_races(work: Path, repeats: int, parts: list[str], release: str) -> dict[str, Any]:
    reference = load_module(HERE.parent / "tests" / "parity" / "reference_weights.py")
    published, own = save_weights(work, reference)
    races: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: race_speed(published, own, reference, repeats),
        "release": lambda: race_release(work, own, reference, repeats, release),
        "loading": lambda: race_loading(published, own, repeats),
        "products": compare_products,
        "memory": lambda: {"memory": compare_memory(work, published, own, reference)},
        "imports": compare_imports,
    }
    found: dict[str, Any] = {}
    for part in parts:
        found |= races[part]()
    return found


def race_row(name: str, goal: str, result: dict[str, float]) -> str:
    spread = f"({result['lowest']:.2f}–{result['highest']:.2f})"
    times = f"{result['ours_s']:.3f} s | {result['theirs_s']:.3f} s"
    return f"| {name} | {times} | **{result['ratio']:.2f}×** {spread} | {goal} |"


def memory_row(kind: str, gigabytes: dict[str, float]) -> str:
    short, long = gigabytes["2 minutes"], gigabytes["20 minutes"]
    goal = "–" if kind == "baseline" else "0.15 GB"
    return f"| {kind} | {short:.2f} GB | {long:.2f} GB | {long - short:.2f} GB | {goal} |"


def report(found: dict[str, Any], repeats: int) -> str:
    float32 = max(rate for name, rate in found["products"].items() if name.startswith("float32"))
    rate = found["operations"] / found["minute"]["ours_s"] / 1e9
    per_second = found["ragged"]["ours_s"] / found["ragged_s"] / (found["minute"]["ours_s"] / 60)
    return f"""# Inference: m2d_hub, a plain runtime and an earlier release

`python benchmarks/inference.py --repeats {repeats}` on {found["processor"]}, {os.cpu_count()} cores,
torch {torch.__version__}, {torch.get_num_threads()} threads. ViT-Base, random weights. Medians; in brackets
the lowest and highest ratio of the pairs.

| | m2d_hub | plain runtime | faster | goal |
|---|---|---|---|---|
{race_row("60 s file, float32", "–", found["minute"])}
{race_row("48 ragged clips of 0.5–14 s, float32", "–", found["ragged"])}
{race_row("60 s file, int8", "–", found["int8"])}
{race_row("60 s file, bfloat16", "–", found["bfloat16"])}
{race_row("load, own folder", "4×", found["load_own"])}
{race_row("load, published .pth", "–", found["load_published"])}

Largest difference of a feature between both: {found["difference"]:.1e}. Lowest cosine of a clip to its
float32 clip: int8 {found["int8_cosine"]:.5f} (goal 0.999), bfloat16 {found["bfloat16_cosine"]:.5f}. A second
of the ragged clips takes {per_second:.2f} times as long as a second of the 60 s file (goal 1.2).

| | m2d_hub | revision {found["release"]} | faster | goal |
|---|---|---|---|---|
{chr(10).join(race_row(name, "–", race) for name, race in found["release_races"].items())}

| matrix product of 1910 × 768 × 3072 | billions of operations per second |
|---|---|
{chr(10).join(f"| {name} | {value:.0f} |" for name, value in found["products"].items())}

The 60 s file needs {found["operations"] / 1e9:.0f} billion operations in the encoder's products. The call
reaches {rate:.0f} billion per second, {rate / float32:.0%} of the fastest float32 product (goal 80%).

| peak memory of a process | 2 minutes | 20 minutes | growth | goal |
|---|---|---|---|---|
{chr(10).join(memory_row(kind, gigabytes) for kind, gigabytes in found["memory"].items())}

`import m2d_hub` after `import torch`: {found["import"]:.3f} s (goal 0.3 s); with `load_model`:
{found["import_load_model"]:.2f} s.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--release", default=RELEASE, help="revision to compare with")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--child", nargs=3, metavar=("KIND", "WEIGHTS", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, weights, data = options.child
        (print_times if kind == "times" else partial(child, kind))(Path(weights), Path(data))
        return
    with tempfile.TemporaryDirectory() as work:
        found = run_races(Path(work), options.repeats, options.parts, options.release)
    keep(RESULTS, found, lambda kept: report(kept, options.repeats))
    races = {name: race for name, race in found.get("release_races", {}).items() if "load" not in name}
    slow = [name for name, race in races.items() if race["ratio"] < 1 / MAX_SLOWDOWN]
    if slow:
        sys.exit(f"Slower than {options.release}: {', '.join(slow)}")


if __name__ == "__main__":
    main()
