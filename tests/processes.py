"""Commands in processes of their own: run to their end, or killed while they work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

# Small models gain nothing from threads; a run resumed on as many adds in the same order.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = [sys.executable, "-m", "m2d_training"]
TRAIN_ON_TWO = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    *("-m", "--", "m2d_training"),
]
DEADLINE_S = 180


def finish(command: Sequence[str | Path], status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, which must have this exit status; its answer has stdout and stderr."""
    answer = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=DEADLINE_S)
    assert answer.returncode == status, answer.stderr
    return answer


def wait_for_lines(lines: int, file: Path, child: subprocess.Popen) -> None:
    """Waits until ``file`` has so many lines, which a process writes that still runs."""
    deadline = time.monotonic() + DEADLINE_S
    while not (file.exists() and len(file.read_bytes().splitlines()) >= lines):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.005)


def kill_when(lines: int, file: Path, command: Sequence[str | Path]) -> None:
    """Starts a command, and kills it and all that it started once ``file`` has so many lines."""
    with subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.DEVNULL) as child:
        wait_for_lines(lines, file, child)
        process = psutil.Process(child.pid)
        started = process.children(recursive=True)
        for each in (process, *started):
            each.kill()
        psutil.wait_procs(started)
    assert child.returncode == -signal.SIGKILL, "it had ended before it was killed"
