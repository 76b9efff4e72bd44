"""Linear evaluation of a small model on the dev tasks, compared with features without training.

    python recipes/m2d-mini/evaluate.py DATA/dev --cache CACHE --model RUN/export
    python recipes/m2d-mini/evaluate.py DATA/dev --cache CACHE --model RUN/export --quick

Frozen features of whole clips, then linear evaluation like ``m2d-train linear-eval --lr auto``, on the given
splits with three seeds. Intervals of 95 % are bootstrapped over the groups of the test split (clips that
share a recording, a prompt or an instrument). The systems are:

- log-mel: mean and standard deviation over time of the model's own 80-band log-mel spectrogram;
- MFCC: mean and standard deviation over time of 20 cosine coefficients (orthonormal DCT of torchaudio, of the
  same spectrogram) and of their first differences;
- random: the network of the model with random weights;
- each ``--model``: mean over frames.

``--quick`` is for choosing between runs: a few tasks, logistic regression on three folds by group over the
train and valid splits. It never reads the test split. Features and results are cached by system and task.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from m2d_training.evaluation.labelled import LabelledClip, LabelledList
from m2d_training.evaluation.linear_fit import FitSettings
from m2d_training.evaluation.linear_folds import fit_folds
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchaudio.functional import compute_deltas, create_dct

from m2d_hub import M2D, load_model

DIAGNOSTIC = "gcin_tone_xspk"  # below chance for all baselines: shown, not averaged
QUICK_TASKS = ("fluid_family", "gcin_initial", "ufoai_sfx", "sonicpi_kind")
QUICK_REGULARISATIONS = (0.01, 0.1)  # C
SEEDS = (42, 43, 44)  # of the linear layers
NUM_COEFFICIENTS = 20
RESAMPLES = 2000
FOLDS = 3

Encode = Callable[[list[str]], np.ndarray]  # files to features (N, K)


@dataclass(frozen=True)
class Task:
    """Clips of one task."""

    name: str
    files: list[str]
    labels: np.ndarray  # (N,)
    splits: np.ndarray  # (N,)
    groups: np.ndarray  # (N,)

    def only(self, kept: np.ndarray) -> Task:
        """Return the clips where ``kept`` (N,) is True."""
        files = [file for file, keep in zip(self.files, kept, strict=True) if keep]
        return Task(self.name, files, self.labels[kept], self.splits[kept], self.groups[kept])


@dataclass(frozen=True)
class System:
    """Function that computes features, with the key of its cache."""

    name: str  # row of the table
    key: str
    encode: Encode


def read_tasks(folder: Path) -> list[Task]:
    """Read the tasks of a dev folder, by name."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            rows[row["task"]].append(row)
    return [
        Task(
            name,
            [str(folder / row["file"]) for row in own],
            *(np.array([row[column] for row in own]) for column in ("label", "split", "group")),
        )
        for name, own in sorted(rows.items())
    ]


def statistics_encoder(model: M2D, cepstral: bool) -> Encode:
    """Return statistics over time of log-mel values, or of cosine coefficients and their differences."""
    dct = create_dct(NUM_COEFFICIENTS, model.config.frontend.n_mels, norm="ortho")  # (F, coefficients)

    def encode(files: list[str]) -> np.ndarray:
        rows = []
        for file in files:
            waveform = torch.from_numpy(soundfile.read(file, dtype="float32")[0])  # 16 kHz mono
            frames = model.frontend.log_mel(waveform[None])[0]  # (F, T)
            if cepstral:
                coefficients = dct.T @ frames
                frames = torch.cat([coefficients, compute_deltas(coefficients)])
            rows.append(torch.cat([frames.mean(dim=1), frames.std(dim=1, correction=0)]).numpy())
        return np.stack(rows)

    return encode


def baselines(model: M2D) -> list[System]:
    """Return the features that a trained model must beat."""
    shape = hashlib.sha256(json.dumps(model.config.encoder.__dict__).encode()).hexdigest()[:12]
    torch.manual_seed(0)
    fresh = M2D(model.config).eval()
    return [
        System("log-mel", "log-mel", statistics_encoder(model, cepstral=False)),
        System("MFCC", "mfcc", statistics_encoder(model, cepstral=True)),
        System("random", f"random-{shape}-0", lambda files: fresh.encode_clip(files).numpy()),
    ]


def model_system(name: str, model: M2D) -> System:
    """Return the clip features of a model; the cache key depends on its weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return System(name, digest.hexdigest()[:16], lambda files: model.encode_clip(files).numpy())


def trained(folder: Path) -> System:
    """Load a model folder."""
    name = folder.parent.name if folder.name == "export" else folder.name
    return model_system(name, load_model(str(folder), device="cpu"))


def features(system: System, task: Task, cache: Path, part: str) -> np.ndarray:
    """Return features (N, K) of the clips of a task, from the cache if possible."""
    return kept(cache / f"{system.key}.{task.name}.{part}.npy", lambda: system.encode(task.files))


def kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return a cached array, computed on the first call."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".partial").open("wb") as file:
            np.save(file, compute())
        path.with_suffix(".partial").replace(path)
    return np.load(path)


def fit(inputs: np.ndarray, labels: np.ndarray, regularisation: float):
    """Fit logistic regression on standardised features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(inputs, labels)


def test_hits(system: System, task: Task, cache: Path) -> np.ndarray:
    """Return the share of seeds with a correct prediction for each clip of the test split (N_test,)."""
    values = features(system, task, cache, "all")
    return kept(cache / f"{system.key}.{task.name}.hits.npy", lambda: _test_hits(values, task))


def _test_hits(values: np.ndarray, task: Task) -> np.ndarray:
    clips = [
        LabelledClip(file, (label,), split, row)
        for row, (file, label, split) in enumerate(zip(task.files, task.labels, task.splits, strict=True))
    ]
    labelled = LabelledList(task.name, clips, tuple(sorted(set(task.labels))), is_multi_label=False)
    features = torch.from_numpy(values).float()[:, None]  # (N, 1, K)
    (own,) = fit_folds("last", features, labelled, SEEDS, FitSettings(learning_rate="auto")).folds
    hits = own.scores.argmax(dim=2) == own.round.test.classes  # (S, N_test)
    return hits.double().mean(dim=0).numpy()


def quick_score(values: np.ndarray, task: Task) -> float:
    """Return the accuracy over folds of the given clips, none of them in the test split."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    splits = list(folds.split(values, task.labels, task.groups))
    means = []
    for c in QUICK_REGULARISATIONS:
        scores = [
            fit(values[a], task.labels[a], c).score(values[b], task.labels[b]) * len(b) for a, b in splits
        ]
        means.append(sum(scores) / len(values))
    return max(means)


def resampled_accuracy(hits: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return accuracies of bootstrap samples of the groups (RESAMPLES,), equal draws for all systems."""
    names, index = np.unique(groups, return_inverse=True)
    right, clips = np.bincount(index, weights=hits), np.bincount(index)
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    return right[draws].sum(axis=1) / clips[draws].sum(axis=1)


def full_table(systems: list[System], tasks: list[Task], cache: Path) -> str:
    """Return Markdown: one row per task, one column per system."""
    names = [system.name for system in systems]
    columns: dict[str, list[np.ndarray]] = defaultdict(list)  # accuracy and its resamples per task
    lines = ["| task (test clips) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task in tasks:
        groups = task.groups[task.splits == "test"]
        cells = []
        for system in systems:
            hits = test_hits(system, task, cache)
            values = np.concatenate([[hits.mean()], resampled_accuracy(hits, groups)])
            if task.name != DIAGNOSTIC:
                columns[system.name].append(values)
            cells.append(_cell(values))
        lines.append(f"| {task.name} ({len(groups)}) | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    means = {name: np.mean(columns[name], axis=0) for name in names}
    lines.append(f"| mean without {DIAGNOSTIC} | " + " | ".join(_cell(means[name]) for name in names) + " |")
    return "\n".join(lines)


def _cell(values: np.ndarray) -> str:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{100 * values[0]:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def quick_table(systems: list[System], tasks: list[Task], cache: Path) -> str:
    """Return Markdown: one row per system."""
    lines = ["| system | " + " | ".join(QUICK_TASKS) + " | mean |", "|---" * (len(QUICK_TASKS) + 2) + "|"]
    kept = [task.only(task.splits != "test") for task in tasks if task.name in QUICK_TASKS]
    kept.sort(key=lambda task: QUICK_TASKS.index(task.name))
    for system in systems:
        scores = [100 * quick_score(features(system, task, cache, "quick"), task) for task in kept]
        cells = " | ".join(f"{score:.1f}" for score in (*scores, np.mean(scores)))
        lines.append(f"| {system.name} | {cells} |")
    return "\n".join(lines)


def dev_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose first argument is the folder of the dev tasks."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the dev tasks, with manifest.csv")
    return parser


def main() -> None:
    """Print the table."""
    parser = dev_parser(__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for cached features")
    parser.add_argument("--model", type=Path, action="append", required=True, help="model folder; repeatable")
    parser.add_argument("--quick", action="store_true", help="compare runs without test clips")
    parser.add_argument("--no-baselines", action="store_true", help="only the models")
    arguments = parser.parse_args()
    systems = [trained(folder) for folder in arguments.model]
    if not arguments.no_baselines:
        systems = baselines(load_model(str(arguments.model[0]), device="cpu")) + systems
    table = quick_table if arguments.quick else full_table
    print(table(systems, read_tasks(arguments.data), arguments.cache))


if __name__ == "__main__":
    main()
