"""Measure files, streams and rates from end to end and write benchmarks/results/throughput.md.

    python benchmarks/throughput.py [--release REVISION] [--repeats 5] [--parts files stream rates]

``--release`` is an earlier revision to compare with. Each figure is measured in a process of its own, and the
sides alternate, so that a drift of the machine's speed affects all of them. Sounds are generated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from inference import RELEASE, processor, weights_for_release, worktree
from kept import keep

import m2d_hub

RESULTS = Path(__file__).resolve().parent / "results" / "throughput.md"
PARTS = ("files", "stream", "rates")
RATE = 16_000
VIT_BASE = "random:80x608p16x16"


def sound(seconds: float, rate: int, channels: int, seed: int) -> np.ndarray:
    """Gliding tones in noise (S, C)."""
    rng = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * rng.uniform(100, 2_000) * times * (1 + 0.1 * np.sin(times)))
    return (0.3 * tone[:, None] + 0.1 * rng.standard_normal((len(times), channels))).astype(np.float32)


def write_corpus(folder: Path, count: int) -> float:
    """MP3s of 5 to 30 s, 44.1 kHz, stereo; returns their seconds."""
    folder.mkdir()
    lengths = np.random.default_rng(0).uniform(5, 30, count)
    for seed, seconds in enumerate(lengths):
        soundfile.write(folder / f"{seed:04d}.mp3", sound(seconds, 44_100, 2, seed), 44_100)
    return float(lengths.sum())


def in_child(task: str, *arguments: object, release: Path | None = None) -> Any:
    """Run a task in a process of its own, with this version of the package or an earlier one."""
    environment = dict(os.environ) if release is None else {**os.environ, "PYTHONPATH": str(release)}
    command = [sys.executable, __file__, "--child", task, *map(str, arguments)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(answer.stdout.splitlines()[-1])


def time_files(model_name: str, folder: str, device: str) -> float:
    """Return the seconds to embed a folder, after a warm-up with two files."""
    paths = sorted(Path(folder).iterdir())
    model = m2d_hub.load_model(model_name, device=device)
    model.encode_clip(paths[:2])
    start = time.perf_counter()
    model.encode_clip(paths)
    return time.perf_counter() - start


def time_arrays(folder: str, device: str) -> float:
    """Return the seconds to encode the same audio from memory, with one core left for reading."""
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    model = m2d_hub.load_model("m2d-mini", device=device)
    waveforms = [waveform_of(path) for path in sorted(Path(folder).iterdir())]
    model.encode_clip(waveforms[:2])
    start = time.perf_counter()
    for first in range(0, len(waveforms), 16):
        model.encode_clip(waveforms[first : first + 16])
    return time.perf_counter() - start


def waveform_of(path: Path) -> torch.Tensor:
    from m2d_hub.audio import open_audio

    return torch.cat(list(open_audio(path, RATE)[0].blocks()))


def race_files(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    seconds = write_corpus(work / "corpus", options.files)
    sides: dict[str, Callable[[], float]] = {
        "now": lambda: in_child("time_files", "m2d-mini", work / "corpus", options.device),
        "arrays": lambda: in_child("time_arrays", work / "corpus", options.device),
    }
    with worktree(options.release) as tree:
        packaged = Path(m2d_hub.__file__).parent / "weights" / "m2d-mini"
        weights = weights_for_release(packaged, work / "m2d-mini")
        sides["release"] = lambda: in_child(
            "time_files", weights, work / "corpus", options.device, release=tree
        )
        runs: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, run in sides.items():
                runs[side].append(run())
    return {"files": {"count": options.files, "seconds": seconds, "runs": runs}}


def measure_stream(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "stream": {
            "hours": options.hours,
            **in_child("compare_stream", options.hours * 3_600),
            **pipe_for_hours(options.hours * 3_600),
            "latency_s": {
                model: median(answer_s(model) for _ in range(options.repeats))
                for model in ("m2d-mini", VIT_BASE)
            },
        }
    }


def compare_stream(seconds: str) -> dict[str, float]:
    """Return the largest difference of streamed frames from those of the whole, and the real-time factor."""
    model = m2d_hub.load_model("m2d-mini")
    minutes = [sound(60, RATE, 1, seed)[:, 0] for seed in range(int(float(seconds)) // 60)]
    stream = model.stream()
    start = time.perf_counter()
    found = [stream.push(minute).features for minute in minutes] + [stream.finish().features]
    spent = time.perf_counter() - start
    whole = model.encode_frames(np.concatenate(minutes)).features
    difference = (torch.cat(found, dim=1) - whole).abs().max().item()
    return {"difference": difference, "real_time_factor": spent / float(seconds)}


def started(model: str, kind: str) -> subprocess.Popen[bytes]:
    command = [Path(sys.executable).parent / "m2d-hub", "stream", "-", "--rate", str(RATE), "--kind", kind]
    return subprocess.Popen(
        [*command, "--model", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def pipe_for_hours(seconds: float) -> dict[str, Any]:
    """Return the memory of the command in GB by minutes of audio, and its real-time factor."""
    held: dict[int, float] = {}
    minutes = int(seconds) // 60
    samples = [(sound(60, RATE, 1, seed) * 20_000).astype("<i2").tobytes() for seed in range(5)]
    begun = time.perf_counter()
    with started("m2d-mini", "clip") as child:
        assert child.stdin is not None and child.stdout is not None
        reader = threading.Thread(target=child.stdout.read)
        reader.start()
        process = psutil.Process(child.pid)
        for minute in range(1, minutes + 1):
            child.stdin.write(samples[minute % len(samples)])
            if minute % 30 == 0 or minute in (10, minutes):
                held[minute] = process.memory_info().rss / 1e9
        child.stdin.close()
        reader.join()
    return {"held_gb": held, "command_real_time_factor": (time.perf_counter() - begun) / seconds}


def answer_s(model: str) -> float:
    """Return the seconds from the last sample of a window, sent in real time, to its result.

    The second window is measured, since the first one waits for the model to be loaded.
    """
    window_s = m2d_hub.load_model(model, device="cpu").window_s
    samples = (sound(2 * window_s + 0.1, RATE, 1, 0) * 20_000).astype("<i2")
    known = int(window_s * RATE) + RATE // 20  # the last frame of the first window needs samples after it
    with started(model, "clip") as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(samples[:known].tobytes())
        child.stdin.flush()
        child.stdout.readline()
        start = time.perf_counter() - known / RATE  # real time of the first sample
        for first in range(known, len(samples), RATE // 10):
            block = samples[first : first + RATE // 10]
            time.sleep(max(0.0, start + (first + len(block)) / RATE - time.perf_counter()))
            child.stdin.write(block.tobytes())
            child.stdin.flush()
        child.stdout.readline()
        answered = time.perf_counter()
        child.stdin.close()
        child.stdout.read()
    return answered - start - 2 * window_s


def measure_rates(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of audio that are read by one core, and encoded, per second."""
    kinds = {"MP3, 44.1 kHz stereo": ("mp3", 44_100, 2), "WAV, 44.1 kHz stereo": ("wav", 44_100, 2)}
    kinds |= {"FLAC, 16 kHz mono": ("flac", RATE, 1), "WAV, 16 kHz mono": ("wav", RATE, 1)}
    found: dict[str, float] = {}
    for name, (suffix, rate, channels) in kinds.items():
        folder = work / name.replace(" ", "_")
        folder.mkdir()
        for seed in range(20):
            soundfile.write(folder / f"{seed}.{suffix}", sound(20, rate, channels, seed), rate)
        found[f"read: {name}"] = median(in_child("time_reading", folder) for _ in range(options.repeats))
    for model in ("m2d-mini", VIT_BASE):
        runs = [in_child("time_encoding", model, options.device) for _ in range(options.repeats)]
        found[f"encode: {model}"] = median(runs)
    return {"rates": {"device": options.device, **found}}


def time_reading(folder: str) -> float:
    torch.set_num_threads(1)
    paths = sorted(Path(folder).iterdir())
    waveform_of(paths[0])
    start = time.perf_counter()
    samples = sum(len(waveform_of(path)) for path in paths)
    return samples / RATE / (time.perf_counter() - start)


def time_encoding(name: str, device: str) -> float:
    model = m2d_hub.load_model(name, device=device)
    batch = 128 if device.startswith("cuda") else 16
    clips = [sound(model.window_s, RATE, 1, seed)[:, 0] for seed in range(batch)]
    model.encode_clip(clips, batch_size=batch)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model.encode_clip(clips, batch_size=batch)
        times.append(time.perf_counter() - start)
    return float(batch * model.window_s / median(times))


def files_rows(files: dict[str, Any]) -> str:
    runs = files["runs"]
    rows = [f"| this version, from files | {median(runs['now']):.2f} s | | |"]
    for side, name, goal in (("release", "the earlier release, from files", 2.0), ("arrays", "arrays", 0.9)):
        if side in runs:
            ratios = [other / now for other, now in zip(runs[side], runs["now"], strict=True)]
            spread = f"{median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
            rows.append(f"| {name} | {median(runs[side]):.2f} s | **{spread}** | {goal}× |")
    return "\n".join(rows)


def report(found: dict[str, Any], repeats: int) -> str:
    text = f"""# Throughput: files, streams, rates

`python benchmarks/throughput.py --repeats {repeats}` on {processor()}, {os.cpu_count()} cores,
torch {torch.__version__}. Medians of processes that ran in turn; in brackets the lowest and highest ratio of
the pairs.
"""
    if files := found.get("files"):
        text += f"""
## {files["count"]} MP3s of 5–30 s, 44.1 kHz stereo, {files["seconds"] / 60:.0f} minutes, m2d-mini

`arrays` encodes the same audio from memory with one thread less than the number of cores.

| | time | divided by the time of this version | goal |
|---|---|---|---|
{files_rows(files)}
"""
    if stream := found.get("stream"):
        text += f"""
## A stream of {stream["hours"]:g} h, m2d-mini

| | | goal |
|---|---|---|
| largest difference from the frames of the whole | {stream["difference"]:.1e} | 1e-05 |
| real-time factor of `M2D.stream` | {stream["real_time_factor"]:.4f} | |
| real-time factor of `m2d-hub stream`, with its start | {stream["command_real_time_factor"]:.4f} | |
"""
        text += "".join(
            f"| memory of `m2d-hub stream` after {minutes} minutes | {gigabytes:.3f} GB | the same |\n"
            for minutes, gigabytes in stream["held_gb"].items()
        )
        text += "".join(
            f"| delay of a result after its window, {model} | {seconds:.3f} s | 0.3 s, m2d-mini |\n"
            for model, seconds in stream["latency_s"].items()
        )
    if rates := found.get("rates"):
        text += (
            f"\n## Seconds of audio per second\n\nReading with one core; encoding on {rates['device']}.\n\n"
        )
        text += "| | |\n|---|---|\n"
        text += "".join(f"| {name} | {rate:,.0f} |\n" for name, rate in rates.items() if name != "device")
    return text


CHILDREN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (time_files, time_arrays, compare_stream, time_reading, time_encoding)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", default=RELEASE, help="revision to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--files", type=int, default=120)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, *arguments = options.child
        print(json.dumps(CHILDREN[task](*arguments)))
        return
    measures = {"files": race_files, "stream": measure_stream, "rates": measure_rates}
    found: dict[str, Any] = {}
    for part in options.parts:
        with tempfile.TemporaryDirectory() as work:
            found |= measures[part](Path(work), options)
    keep(RESULTS, found, lambda kept: report(kept, options.repeats))


if __name__ == "__main__":
    main()
