"""Kill and stop commands, or fill their disk, and compare the result with an uninterrupted run.

    python benchmarks/interruptions.py WORK [--times 20] [--only embed-npz finetune]

Each command runs once without interruption. Then it is interrupted ``--times`` times at random (seeded)
moments, by SIGKILL and SIGTERM in turn, and started again each time. When it finishes, its result is compared
with the uninterrupted one, and it starts over. If the machine can mount a small tmpfs (as root), the command
also runs on a disk that is too small, must report it, and resumes with more space. The results of each
command are written to benchmarks/results/interruptions.md as soon as they are known; those of other commands
are kept.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from kept import keep

from m2d_hub.corpus.stored import read_embeddings

RESULTS = Path(__file__).resolve().parent / "results" / "interruptions.md"
NUM_CLIPS = 48
RATE = 16_000
OTHER = ("cache", "export", "out", "timing")  # paths and durations in reports
PER_RUN = 5  # interruptions before it can finish
HEAD = """\
# Interruptions

`python benchmarks/interruptions.py WORK`: commands on {clips} clips with m2d-mini, interrupted at random
moments and started again each time. "Equal": finished runs whose result equals that of an uninterrupted run
byte for byte, except for durations. "Disk full": the message on a disk of half the required size, and the
result after resuming with more space. An exit status of -15 means that SIGTERM arrived before the process
handled it.

| command | interruptions | SIGKILL | SIGTERM, exit status | results equal | disk full |
|---|---:|---:|---|---:|---|
"""


@dataclass(frozen=True)
class Command:
    """A command, its output, and the part of the output to compare."""

    arguments: list[str]
    out: str  # name in the working folder
    contents: Callable[[Path], Any]
    is_at_once: bool = False  # the output appears when it is complete, and is not written again


@dataclass
class Found:
    """Results of the interruptions of a command."""

    signals: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)  # after SIGTERM
    ends: list[bool] = field(default_factory=list)  # whether each result was equal
    disk: str = "not tried"


def make_clips(folder: Path) -> Path:
    """Write tones of four classes in noise, 1 to 4 s long, and their list."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(NUM_CLIPS):
        time_s = np.arange(int(RATE * rng.uniform(1, 4))) / RATE
        wave = 0.2 * np.sin(2 * np.pi * 220 * 2 ** (number % 4) * time_s) + rng.normal(0, 0.02, len(time_s))
        soundfile.write(folder / f"{number:02}.wav", wave, RATE)
        split = ("train", "train", "valid", "test")[number // 4 % 4]
        rows.append([f"{number:02}.wav", f"tone {number % 4}", split])
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return folder / "list.csv"


def without_times(value: Any) -> Any:
    """Return JSON without values that differ between runs: durations and paths."""
    if isinstance(value, dict):
        return {
            key: without_times(part)
            for key, part in value.items()
            if "second" not in key and key not in OTHER
        }
    return [without_times(part) for part in value] if isinstance(value, list) else value


def embedded(path: Path) -> Any:
    """Return embeddings and timestamps by file, from any format."""
    return {
        row.file: (row.embedding.tobytes(), row.timestamps_s.tobytes())
        for row in read_embeddings(path).rows()
    }


def files(*patterns: str) -> Callable[[Path], Any]:
    """Return the files of a folder, JSON without times."""

    def contents(folder: Path) -> Any:
        found: dict[str, Any] = {}
        for path in sorted(each for pattern in patterns for each in folder.glob(pattern)):
            name = str(path.relative_to(folder))
            if path.suffix == ".json":
                found[name] = without_times(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix == ".jsonl":
                lines = path.read_text(encoding="utf-8").splitlines()
                found[name] = [without_times(json.loads(line)) for line in lines]
            else:
                found[name] = path.read_bytes()
        return found

    return contents


def commands(clips: Path) -> dict[str, Command]:
    """Return all commands by name."""
    hub, train = [sys.executable, "-m", "m2d_hub"], [sys.executable, "-m", "m2d_training"]
    found = {
        f"embed-{suffix.lstrip('.') or 'folder'}": Command(
            [*hub, "embed", str(clips), "--batch-size", "1", "--kind", "frames"], f"out{suffix}", embedded
        )
        for suffix in (".npz", ".safetensors", ".parquet", "")
    }
    quick = ["--set", "save_every_steps=1", "--set", "batch_size=4"]
    found["prepare"] = Command([*train, "prepare", str(clips)], "shards", files("*"), is_at_once=True)
    found["pretrain"] = Command(
        [*train, "pretrain", "m2d-mini", "--data", str(clips), "--set", "epochs=3", *quick],
        "run",
        files("export/*", "metrics.jsonl"),
    )
    labelled = ["--model", "m2d-mini", "--data", str(clips)]
    found["finetune"] = Command(
        [*train, "finetune", "small", *labelled, "--set", "epochs=3", "--set", "min_steps=0", *quick],
        "tuned",
        files("export/*", "report.json", "metrics.jsonl"),
    )
    found["linear-eval"] = Command(
        [*train, "linear-eval", *labelled, "--epochs", "40", "--seeds", "3"],
        "linear",
        files("model/*", "report.json"),
    )
    return found


def start(command: Command, folder: Path) -> subprocess.Popen[str]:
    """Start a command with one thread, so that sums have a fixed order."""
    return subprocess.Popen(
        [*command.arguments, "--out", str(folder / command.out)],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command: Command, folder: Path) -> tuple[int, str]:
    """Run a command to its end and return its exit status and output."""
    child = start(command, folder)
    said = child.communicate()[1]
    return child.returncode, said


def unbroken(command: Command, folder: Path) -> tuple[Any, float, int]:
    """Return the uninterrupted result, its duration and its size in bytes."""
    begun = time.monotonic()
    status, said = finish(command, folder)
    if status:
        sys.exit(f"{' '.join(command.arguments)} ended with {status}:\n{said}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return command.contents(folder / command.out), time.monotonic() - begun, size


def interrupt(command: Command, folder: Path, moment_s: float, number: int) -> tuple[str, int] | None:
    """Send a signal at a moment; return it with the exit status, or None if the command had finished."""
    child = start(command, folder)
    try:
        said = child.communicate(timeout=None if math.isinf(moment_s) else moment_s)[1]
    except subprocess.TimeoutExpired:
        which = signal.SIGKILL if number % 2 else signal.SIGTERM
        child.send_signal(which)
        said = child.communicate()[1]
        if child.returncode not in (0, -which, 128 + which):
            sys.exit(f"{which.name} made {' '.join(command.arguments)} end with {child.returncode}:\n{said}")
        return which.name, child.returncode
    if child.returncode:
        sys.exit(f"{' '.join(command.arguments)} did not resume:\n{said}")
    return None


def interruptions(command: Command, work: Path, times: int, whole: Any, seconds: float) -> Found:
    """Interrupt a command several times and compare each result."""
    found, moments = Found(), random.Random(0)
    while found.signals.total() < times:
        folder = Path(tempfile.mkdtemp(dir=work))
        for tried in itertools.count():
            moment_s = moments.uniform(0.1, 1.0) * seconds if tried < PER_RUN else math.inf
            outcome = interrupt(command, folder, moment_s, found.signals.total())
            if outcome is None:
                break
            found.signals[outcome[0]] += 1
            if outcome[0] == "SIGTERM":
                found.statuses[outcome[1]] += 1
            if command.is_at_once and (folder / command.out).exists():
                break
        found.ends.append(command.contents(folder / command.out) == whole)
        shutil.rmtree(folder)
    return found


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a disk of the given size at ``folder``."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def on_a_full_disk(command: Command, work: Path, whole: Any, size: int) -> str:
    """Run a command with half of the disk space that it needs, then resume with enough."""
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        with small_disk(folder, max(size // 2, 4096)):
            status, said = finish(command, folder)
            message = said.strip().splitlines()[-1] if said.strip() else ""
            if not status or "no space left" not in message.lower() or "Traceback" in said:
                sys.exit(f"{' '.join(command.arguments)} on a full disk ended with {status}:\n{said}")
            subprocess.run(["mount", "-o", f"remount,size={8 * size + 10**8}", str(folder)], check=True)
            status, said = finish(command, folder)
            if status:
                sys.exit(f"{' '.join(command.arguments)} did not resume after a full disk:\n{said}")
            is_equal = command.contents(folder / command.out) == whole
    except subprocess.CalledProcessError:
        return "not tried"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f'"no space left", then {"equal" if is_equal else "NOT EQUAL"}'


def report(found: dict[str, Any]) -> str:
    """Return the table of all commands."""
    lines = []
    for name, kept in found.items():
        signals, statuses = kept["signals"], sorted(kept["statuses"].items())
        counts = ", ".join(f"{status}: {count}" for status, count in statuses)
        lines.append(
            f"| {name} | {sum(signals.values())} | {signals.get('SIGKILL', 0)} "
            f"| {signals.get('SIGTERM', 0)} ({counts}) | {sum(kept['ends'])} of {len(kept['ends'])} "
            f"| {kept['disk']} |\n"
        )
    return HEAD.format(clips=NUM_CLIPS) + "".join(lines)


def main() -> None:
    """Run all commands and store the results of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    clips = make_clips(arguments.work / "clips")
    for name, command in commands(clips).items():
        if arguments.only and name not in arguments.only:
            continue
        folder = Path(tempfile.mkdtemp(dir=arguments.work))
        whole, seconds, size = unbroken(command, folder)
        shutil.rmtree(folder)
        found = interruptions(command, arguments.work, arguments.times, whole, seconds)
        found.disk = on_a_full_disk(command, arguments.work, whole, size)
        keep(RESULTS, {name: json.loads(json.dumps(vars(found)))}, report)


if __name__ == "__main__":
    main()
