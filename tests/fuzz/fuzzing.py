"""Damaged files, and what a reader may do with them."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from m2d_hub import M2DError

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "200"))
MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))  # per reader, instead of ROUNDS
MAX_CPU_S = 5.0  # for one file
MAX_S = 20.0  # for one file, on a machine that is busy with other work
MAX_GIB = 1.5  # that the process may grow by


@dataclass
class Outcome:
    """Outcome of the damaged files of one reader."""

    reader: str
    ends: Counter[str] = field(default_factory=Counter)  # "read", or the error's class
    slowest_s: float = 0.0
    grown_gib: float = 0.0

    def row(self) -> str:
        """Return a line of the table."""
        refused = ", ".join(f"{name} {n:,}" for name, n in sorted(self.ends.items()) if name != "read")
        return (
            f"| {self.reader} | {self.ends.total():,} | {self.ends['read']:,} | {refused or 'none'} "
            f"| {self.slowest_s:.2f} | {self.grown_gib:.2f} |"
        )


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes of a file, most near its start; it may also be truncated, doubled or padded."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 12)):
        position = rng.integers(min(len(data), 64 if rng.random() < 0.6 else len(data)))
        data[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    shape = rng.random()
    if shape < 0.15:
        return bytes(data[: rng.integers(len(data))])
    if shape < 0.25:
        return bytes(data + whole)
    return bytes(data + bytes(int(rng.integers(1_000)))) if shape < 0.3 else bytes(data)


def run(outcome: Outcome, whole: bytes, read: Callable[[bytes], object]) -> None:
    """Read mutations of a file; errors of other types, hangs and floods of memory are failures."""
    peak = _peak_gib()
    for seed in _seeds():
        data = mutated(whole, np.random.default_rng(seed))
        start, cpu_start = time.monotonic(), time.process_time()
        try:
            read(data)
            outcome.ends["read"] += 1
        except M2DError as error:
            outcome.ends[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        cpu_s = time.process_time() - cpu_start
        outcome.slowest_s = max(outcome.slowest_s, cpu_s)
        outcome.grown_gib = _peak_gib() - peak
        assert cpu_s < MAX_CPU_S, f"seed {seed} took {cpu_s:.1f} s of a processor"
        assert time.monotonic() - start < MAX_S, f"seed {seed} took long"
        assert outcome.grown_gib < MAX_GIB, f"seed {seed} took {outcome.grown_gib:.1f} GiB"


def _seeds() -> Iterator[int]:
    end = time.monotonic() + 60 * MINUTES
    seed = 0
    while time.monotonic() < end if MINUTES else seed < ROUNDS:
        yield seed
        seed += 1


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
