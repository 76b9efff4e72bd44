"""Embeds a corpus on the workers of a Ray cluster, kills some, and writes benchmarks/results/ray_corpus.md.

    python benchmarks/ray_corpus.py [--files 500 2000] [--workers 4]

Short files (0.3 s) and m2d-mini, so that what is around the model weighs most. Each corpus is embedded
unbroken, while the memory of the driver, the process that was started, is watched; the largest of them also
in this process, and once more on Ray with a worker killed after a third of the files and the driver after
two thirds, then gone on with. Rows are compared with this process's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import soundfile
import torch
from kept import keep

import m2d_hub
from m2d_hub.corpus.stored import read_stored

RESULTS = Path(__file__).resolve().parent / "results" / "ray_corpus.md"
RATE = 16_000
SECONDS = 0.3
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def write_corpus(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        soundfile.write(folder / f"{number:05}.wav", rng.normal(0, 0.1, int(SECONDS * RATE)), RATE)


def drive(folder: str, out: str, workers: str) -> None:
    """The driver: what ``m2d-hub embed --engine ray`` does, with a cluster that is no larger than need be."""
    import ray

    from m2d_hub.clients.ray import RayEngine

    count = int(workers)
    ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    print(m2d_hub.embed_files(folder, out, model="m2d-mini", device="cpu", engine=RayEngine(count)))


def started(folder: Path, out: Path, workers: int) -> psutil.Popen:
    command = [sys.executable, __file__, "--child", str(folder), str(out), str(workers)]
    return psutil.Popen(command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.DEVNULL)


def rows_in(out: Path) -> int:
    return sum(pyarrow.parquet.read_metadata(part).num_rows for part in out.glob("part-*.parquet"))


def watch(driver: psutil.Popen, is_enough: Callable[[], bool] = lambda: False) -> float:
    """Waits until the driver ends, or until there is enough; its largest memory, in MB."""
    most = 0
    while driver.poll() is None and not is_enough():
        most = max(most, driver.memory_info().rss)
        time.sleep(0.1)
    return most / 1e6


def kill_worker(driver: psutil.Popen) -> None:
    """Kills one of those that hold a model."""
    for child in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "_Worker" in "".join(child.cmdline()):
                child.kill()
                return
    sys.exit("there is no worker to kill")


def unbroken(folder: Path, work: Path, count: int, workers: int) -> dict[str, float]:
    begun = time.perf_counter()
    driver = started(folder, work / f"{count}.dataset", workers)
    most = watch(driver)
    assert not driver.returncode and rows_in(work / f"{count}.dataset") == count
    return {"driver_mb": most, "seconds": time.perf_counter() - begun}


def broken(folder: Path, out: Path, count: int, workers: int) -> dict[str, Any]:
    """One worker killed, then the driver, then gone on with: rows that there were after each."""
    driver = started(folder, out, workers)
    watch(driver, lambda: rows_in(out) >= count // 3)
    kill_worker(driver)
    at_worker = rows_in(out)
    watch(driver, lambda: rows_in(out) >= 2 * count // 3)
    started_by_it = driver.children(recursive=True)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it had ended before it was killed"
    psutil.wait_procs(started_by_it, timeout=60)
    at_driver = rows_in(out)
    again = started(folder, out, workers)
    watch(again)
    assert not again.returncode
    return {"at_worker": at_worker, "at_driver": at_driver}


def compare(local: Path, out: Path) -> dict[str, Any]:
    """Files of one output that the other lacks, or has twice, and the largest difference of a number."""
    expected = {record.file: record.embedding for record in read_stored(local).records()}
    found = [(record.file, record.embedding) for record in read_stored(out).records()]
    times = Counter(file for file, _ in found)
    differences = [np.abs(embedding - expected[file]).max() for file, embedding in found]
    return {
        "lost": len(expected.keys() - times.keys()),
        "twice": sum(count > 1 for count in times.values()),
        "difference": float(max(differences)),
    }


def run(work: Path, counts: list[int], workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {"workers": workers, "unbroken": {}}
    for count in counts:
        folder = work / str(count)
        write_corpus(folder, count)
        found["unbroken"][str(count)] = unbroken(folder, work, count, workers)
    m2d_hub.embed_files(folder, work / "local.npz", model="m2d-mini", device="cpu")
    found["count"] = count
    found["whole"] = compare(work / "local.npz", work / f"{count}.dataset")
    found["broken"] = broken(folder, work / "broken.dataset", count, workers)
    found["broken"] |= compare(work / "local.npz", work / "broken.dataset")
    return found


def report(found: dict[str, Any]) -> str:
    broken = found["broken"]
    text = f"""# A corpus on Ray: {found["workers"]} workers on one machine

`python benchmarks/ray_corpus.py` on {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}:
files of {SECONDS} s, m2d-mini, into a `.dataset`. The driver is the process that was started; its memory is
its largest resident set.

| files | seconds, with the start of the cluster | memory of the driver |
|---|---|---|
"""
    for count, unbroken in found["unbroken"].items():
        text += f"| {int(count):,} | {unbroken['seconds']:.0f} | {unbroken['driver_mb']:.0f} MB |\n"
    return f"""{text}
{found["count"]:,} files, against those that one process embeds without Ray:

| | lost | twice | largest difference of a number |
|---|---|---|---|
| unbroken | {found["whole"]["lost"]} | {found["whole"]["twice"]} | {found["whole"]["difference"]:.1e} |
| a worker killed after {broken["at_worker"]:,}, the driver after {broken["at_driver"]:,}, gone on with \
| {broken["lost"]} | {broken["twice"]} | {broken["difference"]:.1e} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[500, 2_000], help="from few to many")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        drive(*options.child)
        return
    with tempfile.TemporaryDirectory() as work:
        keep(RESULTS, run(Path(work), options.files, options.workers), report)


if __name__ == "__main__":
    main()
