"""Embed a corpus on a Ray cluster, kill processes, and write benchmarks/results/ray_corpus.md.

    python benchmarks/ray_corpus.py [--files 500 2000] [--workers 4]

The files are short (0.3 s) and the model is m2d-mini, so that the overhead dominates. Each corpus is
embedded without interruption while the memory of the driver (the started process) is measured. The last
corpus is also embedded without Ray, and once more on Ray with a worker killed after a third of the files,
the driver killed after two thirds, and a resumed run. The rows are compared with those without Ray.
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
from m2d_hub.corpus.stored import read_embeddings

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
    """Run the driver, like ``m2d-hub embed --engine ray``, on a minimal cluster."""
    import ray

    from m2d_hub.clients.ray import RayEngine

    count = int(workers)
    ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    print(m2d_hub.embed_files(folder, out, model="m2d-mini", device="cpu", engine=RayEngine(count)))


def started(folder: Path, out: Path, workers: int) -> psutil.Popen:
    command = [sys.executable, __file__, "--child", str(folder), str(out), str(workers)]
    return psutil.Popen(command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.DEVNULL)


def rows_in(out: Path) -> int:
    rows = 0
    for part in out.glob("*.parquet"):
        with contextlib.suppress(OSError, pyarrow.ArrowInvalid):  # being written
            rows += pyarrow.parquet.read_metadata(part).num_rows
    return rows


def watch(driver: psutil.Popen, is_enough: Callable[[], bool] = lambda: False) -> float:
    """Wait until the driver ends or enough rows are written; return its peak memory in MB."""
    most = 0
    while driver.poll() is None and not is_enough():
        most = max(most, driver.memory_info().rss)
        time.sleep(0.1)
    return most / 1e6


def kill_worker(driver: psutil.Popen) -> None:
    """Kill one of the processes with a model."""
    for child in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "MapWorker" in "".join(child.cmdline()):
                child.kill()
                return
    sys.exit("no worker process found")


def unbroken(folder: Path, work: Path, count: int, workers: int) -> dict[str, float]:
    begun = time.perf_counter()
    driver = started(folder, work / f"{count}.dataset", workers)
    most = watch(driver)
    assert not driver.returncode and rows_in(work / f"{count}.dataset") == count
    return {"driver_mb": most, "seconds": time.perf_counter() - begun}


def broken(folder: Path, out: Path, count: int, workers: int) -> dict[str, Any]:
    """Kill one worker, then the driver, and resume; return the rows at each kill."""
    driver = started(folder, out, workers)
    watch(driver, lambda: rows_in(out) >= count // 3)
    kill_worker(driver)
    at_worker = rows_in(out)
    watch(driver, lambda: rows_in(out) >= 2 * count // 3)
    started_by_it = driver.children(recursive=True)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it ended before it was killed"
    psutil.wait_procs(started_by_it, timeout=60)
    at_driver = rows_in(out)
    again = started(folder, out, workers)
    watch(again)
    assert not again.returncode
    return {"at_worker": at_worker, "at_driver": at_driver}


def compare(local: Path, out: Path) -> dict[str, Any]:
    """Return the numbers of missing and duplicate files and the largest difference of a value."""
    expected = {row.file: row.embedding for row in read_embeddings(local).rows()}
    found = [(row.file, row.embedding) for row in read_embeddings(out).rows()]
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
files of {SECONDS} s, m2d-mini, `.dataset` output. The driver is the started process; its memory is the peak
resident set.

| files | seconds, including the start of the cluster | memory of the driver |
|---|---|---|
"""
    for count, unbroken in found["unbroken"].items():
        text += f"| {int(count):,} | {unbroken['seconds']:.0f} | {unbroken['driver_mb']:.0f} MB |\n"
    return f"""{text}
{found["count"]:,} files, compared with one process without Ray:

| | missing | duplicate | largest difference |
|---|---|---|---|
| uninterrupted | {found["whole"]["lost"]} | {found["whole"]["twice"]} | {found["whole"]["difference"]:.1e} |
| worker killed after {broken["at_worker"]:,} rows, driver after {broken["at_driver"]:,}, then resumed \
| {broken["lost"]} | {broken["twice"]} | {broken["difference"]:.1e} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--files", type=int, nargs="+", default=[500, 2_000], help="sizes of the corpora, ascending"
    )
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
