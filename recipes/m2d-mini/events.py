"""Measure how well frames locate sounds: a linear head finds events that are placed at known times.

    python recipes/m2d-mini/events.py DATA/dev --model OUT/export [--model m2d-mini]

Mixtures of 8 s contain four sounds of dev tasks, one kind per task, 10 to 25 dB above noise. Logistic
regression on single frames learns the kinds of sound from mixtures of the train split; an event is a run of
frames with a score of at least 0.5. Prints Markdown: F1 on mixtures of the valid split, where onset and
offset must both be within one frame (160 ms); F1 of frames; and mean error of the onsets found within 0.5 s.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from evaluate import Task, read_tasks
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m2d_hub import M2D, load_model

SAMPLE_RATE = 16_000  # Hz
TASKS = ("fluid_family", "gcin_initial", "sonicpi_kind", "ufoai_sfx")  # kinds of events
MIXTURES = {"train": 300, "valid": 100}
SLOTS, SLOT_S = 4, 2.08
EVENT_S = 0.3, 1.2  # shortest and longest event
EVENT_DB = 10.0, 25.0  # RMS level above the noise
NOISE_DBFS = -45.0
TOLERANCE_S = 0.16  # one frame
NEAR_S = 0.5  # largest error of an onset that counts as found


@dataclass(frozen=True)
class Event:
    """A sound in a mixture."""

    kind: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Mixture:
    """A waveform (S,) and the sounds in it."""

    waveform: np.ndarray
    events: list[Event]

    def targets(self, times: np.ndarray) -> np.ndarray:
        """Return whether each kind sounds at the given times (T, kinds)."""
        targets = np.zeros((len(times), len(TASKS)), dtype=int)
        for event in self.events:
            targets[(times >= event.start_s) & (times < event.end_s), event.kind] = 1
        return targets


def at_level(waveform: np.ndarray, dbfs: float) -> np.ndarray:
    """Return a waveform with this RMS level."""
    return waveform * np.float32(10 ** (dbfs / 20) / max(np.sqrt(np.mean(waveform**2)), 1e-9))


def loudest(path: str, seconds: float) -> np.ndarray:
    """Return the part of a file with the highest energy (S,), with ramps of 5 ms."""
    waveform, _ = soundfile.read(path, dtype="float32")
    length = min(len(waveform), int(seconds * SAMPLE_RATE))
    energy = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[length:] - energy[: len(energy) - length]))
    places = np.arange(length)
    ramp = np.clip(np.minimum(places, places[::-1]) / (0.005 * SAMPLE_RATE), 0, 1)
    return waveform[start : start + length] * ramp.astype(np.float32)


def mix(files: list[list[str]], rng: np.random.Generator) -> Mixture:
    """Return noise with one event per slot, of random kinds."""
    waveform = at_level(rng.standard_normal(int(SLOTS * SLOT_S * SAMPLE_RATE), dtype=np.float32), NOISE_DBFS)
    events = []
    for slot in range(SLOTS):
        kind = int(rng.integers(len(files)))
        sound = loudest(files[kind][rng.integers(len(files[kind]))], rng.uniform(*EVENT_S))
        seconds = len(sound) / SAMPLE_RATE
        start_s = SLOT_S * slot + rng.uniform(0.1, SLOT_S - 0.1 - seconds)
        first = int(start_s * SAMPLE_RATE)
        waveform[first : first + len(sound)] += at_level(sound, NOISE_DBFS + rng.uniform(*EVENT_DB))
        events.append(Event(kind, start_s, start_s + seconds))
    return Mixture(waveform, events)


def mixtures(tasks: list[Task], split: str) -> list[Mixture]:
    """Return mixtures of the clips of a split."""
    by_name = {task.name: task.only(task.splits == split).files for task in tasks}
    rng = np.random.default_rng(sorted(MIXTURES).index(split))
    return [mix([by_name[name] for name in TASKS], rng) for _ in range(MIXTURES[split])]


def runs(active: np.ndarray, times: np.ndarray, hop_s: float) -> list[Event]:
    """Return the runs of active frames (T, kinds) as events; ``times`` are the centres of frames (T,)."""
    found = []
    for kind in range(active.shape[1]):
        edges = np.flatnonzero(np.diff(np.pad(active[:, kind].astype(int), 1)))
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            found.append(Event(kind, times[first] - hop_s / 2, times[end - 1] + hop_s / 2))
    return found


def hits(found: list[Event], expected: list[Event], tolerance_s: float, with_end: bool) -> list[float]:
    """Return the onset errors of the expected events that were found, each by another event."""
    left, errors = list(found), []
    for event in expected:
        near = [
            (abs(own.start_s - event.start_s), index)
            for index, own in enumerate(left)
            if own.kind == event.kind
            and abs(own.start_s - event.start_s) <= tolerance_s
            and (not with_end or abs(own.end_s - event.end_s) <= tolerance_s)
        ]
        if near:
            error, index = min(near)
            errors.append(error)
            del left[index]
    return errors


def measure(model: M2D, train: list[Mixture], valid: list[Mixture]) -> tuple[float, float, float]:
    """Return F1 of events, F1 of frames and the mean error of onsets in seconds."""
    frames = model.encode_frames([mixture.waveform for mixture in train + valid])
    times = frames.timestamps_s.double().numpy()
    features = frames.features.numpy()
    targets = np.stack([mixture.targets(times) for mixture in train + valid])
    count = len(train)
    classifier = make_pipeline(
        StandardScaler(), OneVsRestClassifier(LogisticRegression(C=0.01, max_iter=200))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(
            features[:count].reshape(-1, features.shape[-1]), targets[:count].reshape(-1, len(TASKS))
        )
    scores = classifier.predict_proba(features[count:].reshape(-1, features.shape[-1]))
    active = scores.reshape(len(valid), len(times), -1) >= 0.5
    found = [runs(own, times, model.frame_hop_s) for own in active]
    num_found, num_expected = sum(map(len, found)), sum(len(mixture.events) for mixture in valid)
    pairs = list(zip(found, [mixture.events for mixture in valid], strict=True))
    exact = sum(len(hits(own, events, TOLERANCE_S, with_end=True)) for own, events in pairs)
    errors = [error for own, events in pairs for error in hits(own, events, NEAR_S, with_end=False)]
    right = (active & (targets[count:] > 0)).sum()
    frame_f1 = 2 * right / (active.sum() + targets[count:].sum())
    return 2 * exact / (num_found + num_expected), float(frame_f1), float(np.mean(errors))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the dev tasks, with manifest.csv")
    parser.add_argument("--model", action="append", required=True, help="name or folder; repeatable")
    arguments = parser.parse_args()
    tasks = read_tasks(arguments.data)
    train, valid = (mixtures(tasks, split) for split in ("train", "valid"))
    print("| model | F1 of events | F1 of frames | error of onsets |\n|---|---|---|---|")
    for name in arguments.model:
        events, frames, error_s = measure(load_model(name, device="cpu"), train, valid)
        print(f"| {name} | {events:.3f} | {frames:.3f} | {1000 * error_s:.0f} ms |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
