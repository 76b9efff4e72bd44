"""Measure how many clips per second one core reads for pre-training (results/training_feed.md).

    python benchmarks/training_feed.py [--clips 200] [--seconds 10] [--repeats 3]

Crops are drawn as in pre-training, with one process and one thread: from FLAC at 16 kHz in shards of
``m2d-train prepare``, and from MP3 and WAV files at 44.1 kHz, where only the crop is decoded and resampled.
``whole`` decodes the whole clip, for comparison. The sounds are generated.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
from kept import keep
from m2d_training.data.crops import CropPlan, crop_waveform
from m2d_training.data.entries import Entry
from m2d_training.data.manifest import read_manifest
from m2d_training.pretraining.prepare import prepare

from m2d_hub.audio import open_audio
from m2d_hub.config import FrontendConfig

RESULTS = Path(__file__).resolve().parent / "results" / "training_feed.md"
CROP_FRAMES = 608  # of m2d-0.7
STEP_CLIPS = 4 * 512
KINDS = {"FLAC shards, 16 kHz mono": "shards", "MP3, 44.1 kHz stereo": "mp3", "WAV, 44.1 kHz stereo": "wav"}


def write_clips(folder: Path, suffix: str, count: int, seconds: float, rate: int, channels: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    times = np.arange(int(seconds * rate)) / rate
    for number in range(count):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2_000) * times)
        sound = tone[:, None] + 0.1 * rng.standard_normal((len(times), channels))
        soundfile.write(folder / f"{number:05}.{suffix}", sound.astype(np.float32), rate)


def entries_of(work: Path, kind: str, options: argparse.Namespace) -> list[Entry]:
    folder = work / kind
    if kind != "shards":
        write_clips(folder, kind, options.clips, options.seconds, 44_100, 2)
        return read_manifest(str(folder)).entries
    write_clips(work / "flac", "flac", options.clips, options.seconds, 16_000, 1)
    prepare(work / "flac", folder, progress=False)
    return read_manifest(str(folder / "*.tar")).entries


def rate_of(read: Callable[[Entry], object], entries: list[Entry], repeats: int) -> float:
    """Return clips per second, after a few warm-up clips."""
    for entry in entries[:5]:
        read(entry)
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        for entry in entries:
            read(entry)
        rates.append(len(entries) / (time.process_time() - start))
    return median(rates)


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    plan, rng = CropPlan(FrontendConfig(), CROP_FRAMES, "pad"), np.random.default_rng(0)
    rates = {}
    for name, kind in KINDS.items():
        entries = entries_of(work, kind, options)
        rates[name] = {
            "crop": rate_of(lambda entry: crop_waveform(entry, plan, rng), entries, options.repeats),
            "whole": rate_of(read_whole, entries, options.repeats),
        }
    return {"clips": options.clips, "seconds": options.seconds, "rates": rates}


def read_whole(entry: Entry) -> int:
    return sum(len(block) for block in open_audio(entry.source(), FrontendConfig().sample_rate)[0].blocks())


def report(found: dict[str, Any]) -> str:
    text = f"""# Reading clips for pre-training

`python benchmarks/training_feed.py` on {platform.machine()}, {os.cpu_count()} cores,
torch {torch.__version__}:
{found["clips"]} clips of {found["seconds"]:g} s of each kind, a random crop of {CROP_FRAMES} frames (6.08 s)
of each, in seconds of processor time.

| | clips/s per core | decoding the whole clip | cores for {STEP_CLIPS:,} clips (4 × 512) per second |
|---|---|---|---|
"""
    for name, rates in found["rates"].items():
        text += (
            f"| {name} | {rates['crop']:,.0f} | {rates['whole']:,.0f} | {STEP_CLIPS / rates['crop']:.1f} |\n"
        )
    return f"""{text}
If a step of 4 × 512 clips takes S seconds on a GPU, reading needs the cores of the last column divided by S.
S was not measured; `benchmarks/training_speed.py` measures it on a machine with a GPU.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        keep(RESULTS, measure(Path(work), options), report)


if __name__ == "__main__":
    main()
