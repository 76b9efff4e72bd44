"""Compare linear evaluation with logistic regression of scikit-learn on the same features.

    python benchmarks/linear_eval.py DATA/dev --model m2d-mini --work FOLDER

DATA/dev/manifest.csv lists tasks (task, split, file, label). Each task is evaluated by
``m2d_training.linear_eval`` with the learning rate "auto" and with the paper's protocol, and by
``sklearn.linear_model.LogisticRegression`` on the same standardised features, with C chosen on the valid
clips. benchmarks/results/linear_eval.md states for each task whether the accuracy of scikit-learn is within
our interval. Features are cached in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from m2d_training.evaluation.clip_encoder import ClipEncoder
from m2d_training.evaluation.labelled import Subset, read_labelled
from m2d_training.evaluation.linear_fit import Standardiser
from m2d_training.linear.features import stored_features
from m2d_training.linear.run import LinearEvalResult, linear_eval
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from m2d_hub import load_model

REGULARISATIONS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # C
RESULTS = Path(__file__).parent / "results" / "linear_eval.md"
HEADER = """# Linear evaluation against scikit-learn

Written by `python benchmarks/linear_eval.py DATA/dev --model {model}`. Accuracy in percent on the test
clips of each task, with the 95 % interval over clips and six seeds. Clips are used {clips}.

- ours: `m2d-train linear-eval --lr auto`: 3e-5 as in the paper, or, if that does not
  converge within 200 epochs, the rate that is best on the valid clips (in brackets);
- 3e-5: the paper's protocol, which is the default; * if it did not converge;
- scikit-learn: `LogisticRegression` on the same standardised features, with C chosen on the valid clips.

gcin_tone_xspk is tested on an unseen voice. Its valid clips are of the training voice, so the rate or C
chosen on them may not suit the other voice.

| task | train, valid, test | classes | ours | 3e-5 | scikit-learn | within ours | seconds for ours |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Comparison:
    """Results of one task."""

    task: str
    ours: LinearEvalResult
    papers: LinearEvalResult
    regression: float  # accuracy
    seconds: float  # of our method, without features

    @property
    def is_within(self) -> bool:
        """Return whether the accuracy of scikit-learn is within our interval."""
        return self.ours.interval.low <= self.regression <= self.ours.interval.high

    def row(self) -> str:
        """Return a row of the table."""
        (training,) = self.ours.report["trainings"]
        (papers,) = self.papers.report["trainings"]
        cells = [
            self.task,
            ", ".join(str(count) for count in training["clips"].values()),
            str(self.ours.report["classes"]),
            f"{_figures(self.ours)} [{training['learning_rate']:g}]",
            _figures(self.papers) + "*" * (not all(papers["has_converged"])),
            f"{100 * self.regression:.1f}",
            "yes" if self.is_within else "no",
            f"{self.seconds:.0f}",
        ]
        return "| " + " | ".join(cells) + " |"


def _figures(result: LinearEvalResult) -> str:
    interval = result.interval
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def write_lists(data: Path, work: Path) -> list[Path]:
    """Write a labelled list for each task."""
    rows: dict[str, list[list[str]]] = defaultdict(list)
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            rows[row["task"]].append([str((data / row["file"]).absolute()), row["label"], row["split"]])
    work.mkdir(parents=True, exist_ok=True)
    paths = []
    for task, own in sorted(rows.items()):
        paths.append(work / f"{task}.csv")
        with paths[-1].open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([["file", "label", "split"], *own])
    return paths


def compare(path: Path, options: dict[str, Any], papers: dict[str, Any]) -> Comparison:
    """Evaluate one task with all methods."""
    ours = linear_eval(**options)
    accuracy = regression_accuracy(path, options, ours.report["clip_seconds"])
    return Comparison(
        path.stem, ours, linear_eval(**papers), accuracy, ours.report["timing"]["linear_layers_s"]
    )


def regression_accuracy(path: Path, options: dict[str, Any], clip_seconds: float | None) -> float:
    """Return the test accuracy of logistic regression on the features cached by the evaluation."""
    labelled = read_labelled(path)
    model = load_model(options["model"], device=options["device"])
    num_samples = None if clip_seconds is None else round(clip_seconds * model.sample_rate)
    encoder = ClipEncoder(model, num_samples=num_samples)
    features = stored_features(encoder, [clip.file for clip in labelled.clips], options["cache"])
    assert not features.computed, "the evaluation has computed all features"
    values = features.layer(0)
    places = {clip.row: place for place, clip in enumerate(labelled.clips)}
    (only,) = labelled.folds()

    def inputs(part: Subset) -> torch.Tensor:
        return values[[places[row] for row in part.rows]]

    standardise = Standardiser.of(inputs(only.train))
    train, valid, test = (standardise(inputs(part)).numpy() for part in (only.train, only.valid, only.test))
    fitted = []
    for c in REGULARISATIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.append(LogisticRegression(C=c, max_iter=1000).fit(train, only.train.classes))
    best = max(fitted, key=lambda regression: regression.score(valid, only.valid.classes))
    return float(best.score(test, only.test.classes))


def write_results(path: Path, model: str, duration: str, comparisons: Sequence[Comparison]) -> None:
    """Write the table."""
    clips = "whole" if duration == "none" else "with the mean length of the training clips, as in the paper"
    within = sum(comparison.is_within for comparison in comparisons)
    text = HEADER.format(model=model, clips=clips)
    text += "\n".join(comparison.row() for comparison in comparisons)
    text += (
        f"\n\nThe accuracy of scikit-learn is within our interval in {within} of {len(comparisons)} tasks.\n"
    )
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the dev tasks, with manifest.csv")
    parser.add_argument("--model", default="m2d-mini", help="name, folder or file")
    parser.add_argument("--work", type=Path, required=True, help="folder for lists, features and runs")
    parser.add_argument("--duration", choices=["mean", "none"], default="none", help="as for linear-eval")
    parser.add_argument("--task", action="append", help="only this task; repeatable")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the table")
    parser.add_argument("--device", help="cpu, cuda …")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    comparisons = []
    for path in write_lists(arguments.data, arguments.work / "lists"):
        if arguments.task and path.stem not in arguments.task:
            continue
        started = time.perf_counter()
        shared = {
            "model": arguments.model,
            "data": path,
            "duration": arguments.duration,
            "cache": arguments.work / "features",
            "device": arguments.device,
        }
        runs = arguments.work / "runs"
        ours = {"out": runs / path.stem, "learning_rate": "auto", **shared}
        papers = {"out": runs / f"{path.stem}-3e-5", **shared}
        comparisons.append(compare(path, ours, papers))
        print(f"{comparisons[-1].row()}  ({time.perf_counter() - started:.0f} s)", flush=True)
    write_results(arguments.out, arguments.model, arguments.duration, comparisons)


if __name__ == "__main__":
    main()
