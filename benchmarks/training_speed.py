"""Measure pre-training on the CPU: steps per second, the time of each stage, and scaling with processes.

    python benchmarks/training_speed.py [--steps 8] [--presets m2d-0.7 m2d-mini]

Stages are timed in one process with all cores; processes are started by the console script, with one thread
each. The data are generated clips of 10 s in FLAC shards, decoded by the training process.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from accelerate import Accelerator
from m2d_training import build_pretrainer
from m2d_training.data.manifest import read_manifest
from m2d_training.data.sampling import EpochPlan, StepSampler
from m2d_training.pretraining.dataset import PretrainDataset, build_loader
from m2d_training.pretraining.prepare import prepare
from m2d_training.pretraining.presets import load_preset
from m2d_training.pretraining.trainer import InputBuilder, Trainer
from m2d_training.runs.settings import apply_settings

from m2d_hub.nn.frontend import LogMelFrontend

RESULTS = Path(__file__).resolve().parent / "results" / "training_speed.md"
CLIPS, CLIP_S, RATE = 64, 10.0, 16_000
WARM_UP_STEPS = 2
BATCHES = {"m2d-0.7": 8, "m2d-mini": 64}  # clips per step of each preset


class Stopwatch:
    """Seconds spent in methods of objects, without nested timed methods."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def watch(self, owner: object, method: str, stage: str) -> None:
        """Time a method of an object from now on."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            started = time.perf_counter()
            self._inside.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[stage] += elapsed - self._inside.pop()
                if self._inside:
                    self._inside[-1] += elapsed

        object.__setattr__(owner, method, timed)


def make_shards(folder: Path) -> Path:
    """Write generated clips as FLAC shards."""
    rng = np.random.default_rng(0)
    rows = [["file"]]
    for index in range(CLIPS):
        soundfile.write(folder / f"{index}.wav", 0.1 * rng.standard_normal(int(CLIP_S * RATE)), RATE)
        rows.append([f"{index}.wav"])
    with (folder / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(rows)
    prepare(folder / "list.csv", folder / "shards", progress=False)
    return folder / "shards"


def time_stages(preset: str, shards: Path, steps: int) -> dict[str, object]:
    """Return the seconds of each stage of a step in this process."""
    settings = [f"batch_size={BATCHES[preset]}", "offline=none"]  # clips without labels
    config = apply_settings(load_preset(preset).config, settings).resolve()
    manifest = read_manifest(str(shards))
    plan = EpochPlan(len(manifest.entries), config.batch_size, config.seed)
    accelerator = Accelerator(cpu=True)
    inputs = InputBuilder(config, manifest.kind, LogMelFrontend(config.frontend), noise_mean=0.0)
    pretrainer = build_pretrainer(config)
    trainer = Trainer(config, pretrainer, inputs, plan, accelerator)
    total = steps + WARM_UP_STEPS
    loader = iter(build_loader(PretrainDataset(config, manifest), StepSampler(plan, 1, 0, total), 0))
    watch = Stopwatch()
    started = 0.0
    for step in range(total):
        if step == WARM_UP_STEPS:
            watch = watch_stages(trainer, pretrainer)
            started = time.perf_counter()
        reading = time.perf_counter()
        batches = list(itertools.islice(loader, 1))
        watch.seconds["data"] += time.perf_counter() - reading
        trainer.train_step(batches, step)
    seconds = (time.perf_counter() - started) / steps
    stages = {stage: round(spent / steps, 4) for stage, spent in watch.seconds.items()}
    stages["rest"] = round(seconds - sum(stages.values()), 4)
    return {
        "batch_size": config.batch_size,
        "threads": torch.get_num_threads(),
        "steps_per_second": round(1 / seconds, 4),
        "clips_per_second": round(config.batch_size / seconds, 2),
        "seconds_per_step": round(seconds, 3),
        "stages_s": stages,
    }


def watch_stages(trainer: Trainer, pretrainer) -> Stopwatch:
    """Time the stages of a step."""
    watch = Stopwatch()
    watch.watch(trainer.inputs, "log_mel", "log-mel")
    watch.watch(trainer.model, "forward", "other forward")
    watch.watch(pretrainer.encoder, "encode", "encoder")
    watch.watch(pretrainer.predictor, "forward", "predictor")
    watch.watch(pretrainer.target_encoder, "forward", "target encoder")
    watch.watch(trainer.accelerator, "backward", "backward")
    watch.watch(trainer.accelerator, "clip_grad_norm_", "gradient clipping")
    watch.watch(trainer.optimizer, "step", "optimizer")
    watch.watch(pretrainer, "update_target_encoder", "EMA")
    return watch


def time_processes(preset: str, shards: Path, processes: int, steps: int) -> dict[str, object]:
    """Return clips per second of the console script with one thread per process."""
    with tempfile.TemporaryDirectory() as out:
        batch = BATCHES[preset] // 2
        settings = [
            f"batch_size={batch}",
            f"min_list_size={(steps + WARM_UP_STEPS) * batch * processes}",
            "epochs=1",
        ]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += ["-m", "m2d_training", "pretrain", preset, "--data", str(shards), "--out", out]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.mean(line["seconds"] + line["data_seconds"] for line in lines[WARM_UP_STEPS:])
    return {
        "processes": processes,
        "batch_size": batch,
        "clips_per_second": round(batch * processes / seconds, 2),
    }


def report(results: dict[str, dict]) -> str:
    """Return the results as a page."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    lines = [
        "# Speed of pre-training on a CPU",
        "",
        f"`python benchmarks/training_speed.py --presets {' '.join(results)}`, {machine}.",
        "Clips of 10 s in FLAC shards, decoded by the training process.",
        "",
        "| preset | clips per step | threads | steps/s | clips/s |",
        "|---|---|---|---|---|",
    ]
    names = ("batch_size", "threads", "steps_per_second", "clips_per_second")
    for preset, result in results.items():
        lines.append(f"| {preset} | {' | '.join(str(result['one process'][name]) for name in names)} |")
    for preset, result in results.items():
        lines += ["", *stage_table(preset, result["one process"])]
    lines += ["", "## Scaling with processes, one thread each", ""]
    lines += ["| preset | processes | clips/s |", "|---|---|---|"]
    for preset, result in results.items():
        rows = result["one thread each"]
        lines += [f"| {preset} | {row['processes']} | {row['clips_per_second']} |" for row in rows]
    return "\n".join(lines) + "\n"


def stage_table(preset: str, timed: dict) -> list[str]:
    """Return a table of the time of each stage, longest first."""
    whole = timed["seconds_per_step"]
    stages = sorted(timed["stages_s"].items(), key=lambda stage: -stage[1])
    head = [f"## {preset}: stages of a step of {whole} s", "", "| stage | s | share |", "|---|---|---|"]
    return head + [f"| {stage} | {seconds} | {seconds / whole:.1%} |" for stage, seconds in stages]


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--presets", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    options = parser.parse_args()
    steps = options.steps
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder))
        for preset in options.presets:
            results[preset] = {
                "one process": time_stages(preset, shards, steps),
                "one thread each": [time_processes(preset, shards, n, steps) for n in (1, 2)],
            }
            print(preset, json.dumps(results[preset], indent=2), flush=True)
    RESULTS.write_text(report(results), encoding="utf-8")


if __name__ == "__main__":
    main()
