"""Fit m2d-mini-tags to the list of ``tags.py``, calibrate it, and test it on unseen packages.

    python recipes/m2d-mini/tagger.py DATA/tags.csv --model OUT/further/export --out TAGGER

The encoder is not trained. The head is one linear discriminant per class with a shrunk covariance
(``SHRINKAGE``), on features of whole clips. ``TAGGER/m2d-mini-tags`` is the model folder, in float16. The
logits of the head are calibrated on the validation packages (Platt scaling, folded into the weights and
biases), so that about half of the clips with a score of 0.5 have the class. ``NONE`` is dropped, and so are
classes with fewer than ``MIN_CLIPS`` training clips, or with training clips of fewer than ``MIN_PACKAGES``
packages and no validation clip. ``TAGGER/tags.md`` is the table for MODEL_CARD.md: average precision (AP) of
each class on the test packages, precision and recall at 0.5, and the class that it is most often confused
with. Intervals of classes are bootstrapped over clips, those of means over packages.

Shapes: N clips, K = N_F·D features, C classes, R resamples.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from m2d_training.evaluation.labelled import Fold, LabelledList, Subset, read_labelled
from m2d_training.evaluation.metrics import average_precisions, bootstrap_interval, mean_average_precision
from release import save_halves
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tags import NONE, with_parents
from torch import Tensor

from m2d_hub import M2D, load_model
from m2d_hub.corpus.tables import read_table

NAME = "m2d-mini-tags"
SHRINKAGE = 0.5  # of the covariance towards a multiple of the identity
THRESHOLD = 0.5  # minimum score of a tag
GOOD = 0.5  # AP that a class should reach
RIDGE = 1.0  # penalty on the deviation of a class from the shared calibration
CALIBRATION_STEPS = 200
RESAMPLES = 1000
MIN_CLIPS = 10  # minimum number of training clips of a class
MIN_PACKAGES = 3  # minimum number of training packages of a class without validation clips
BINS = 10  # for the calibration error


@dataclass(frozen=True)
class Scored:
    """Logits and targets of some clips."""

    logits: Tensor  # (N, C)
    targets: Tensor  # (N, C)
    packages: np.ndarray  # (N,), names

    @property
    def scores(self) -> Tensor:
        """Scores (N, C)."""
        return self.logits.sigmoid()


def encode(model: M2D, part: Subset) -> Tensor:
    """Return features (N, K) of whole clips."""
    return model.encode_clip(part.files, batch_size=32, progress=True)


@torch.no_grad()
def fit_head(model: M2D, features: Tensor, targets: Tensor, labels: list[str]) -> None:
    """Replace the head of a model by linear discriminants, one for each class against all other clips.

    Args:
        model: Model whose head is replaced.
        features: Features of the training clips (N, K).
        targets: Whether a clip has a class (N, C); each class has clips.
        labels: Names of the classes.
    """
    model.set_head(targets.shape[1], labels=labels)
    head = model.eval().required_head()
    head.norm.running_mean.copy_(features.mean(dim=0))
    head.norm.running_var.copy_(features.var(dim=0))
    inputs = head.norm(features).numpy()
    for column, has_class in enumerate(targets.T.numpy() > 0):
        discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(inputs, has_class)
        head.linear.weight[column] = torch.from_numpy(discriminant.coef_[0])
        head.linear.bias[column] = float(discriminant.intercept_[0])


@torch.no_grad()
def score(model: M2D, part: Subset, kept: list[int], packages: dict[int, str]) -> Scored:
    """Return logits of whole clips for the classes ``kept`` of the list."""
    own = np.array([packages[row] for row in part.rows])
    return Scored(model.required_head()(encode(model, part)), part.targets[:, kept], own)


def fit_platt(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fit factors and offsets (C,) that turn sigmoids of logits (N, C) into probabilities.

    All classes share a factor and an offset; a penalty (``RIDGE``) limits the deviation of each class.
    Classes without validation clips use the shared values.
    """
    known = targets.any(dim=0)
    shared = torch.zeros(2, requires_grad=True)
    own = torch.zeros(2, targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([shared, own], max_iter=CALIBRATION_STEPS, line_search_fn="strong_wolfe")

    def calibration() -> tuple[Tensor, Tensor]:
        log_factor, offset = shared[:, None] + own * known
        return log_factor.exp(), offset

    def loss() -> Tensor:
        optimizer.zero_grad()
        factor, offset = calibration()
        error = F.binary_cross_entropy_with_logits(
            (logits * factor + offset)[:, known], targets[:, known], reduction="sum"
        )
        total = error + RIDGE * own.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    factor, offset = calibration()
    return factor.detach(), offset.detach()


@torch.no_grad()
def calibrate(model: M2D, factor: Tensor, offset: Tensor) -> None:
    """Scale and shift the logits of the head of a model."""
    linear = model.required_head().linear
    linear.weight.mul_(factor[:, None])
    linear.bias.mul_(factor).add_(offset)


def parent_indices(labels: list[str]) -> tuple[int, ...]:
    """Return for each class the index of the nearest class above it in the list; -1 for none."""
    nearest = [
        next((name for name in with_parents((label,))[1:] if name in labels), None) for label in labels
    ]
    return tuple(-1 if name is None else labels.index(name) for name in nearest)


def save(model: M2D, folder: Path) -> None:
    """Write the model folder in float16; parents score at least as high as their children."""
    source = "m2d-mini, pre-trained further, with a head fitted to clips of free packages, see MODEL_CARD.md"
    head = replace(model.required_head().config, parents=parent_indices(model.labels))
    config = replace(model.config, name=NAME, license="Apache-2.0", source=source, head=head)
    save_halves(folder, model.state_dict(), config)


def package_interval(scored: Scored) -> str:
    """Return the mean AP with its interval over packages."""
    names, index = np.unique(scored.packages, return_inverse=True)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)  # (R, packages)
    counts = torch.from_numpy(draws[:, index])
    values = mean_average_precision.resampled(scored.scores, scored.targets, counts)
    low, high = np.nanpercentile(values.numpy(), [2.5, 97.5])
    return f"{mean_average_precision(scored.scores, scored.targets):.3f} ({low:.3f}-{high:.3f})"


def calibration_error(scored: Scored) -> float:
    """Return the mean distance between score and share of positive clips, over bins of all classes."""
    scores, targets = scored.scores.flatten(), scored.targets.flatten()
    bins = (scores * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for place in bins.unique():
        inside = bins == place
        error += float((scores[inside].mean() - targets[inside].mean()).abs() * inside.sum())
    return error / len(scores)


def confused_with(scored: Scored, column: int, labels: list[str]) -> str:
    """Return the wrong class that most often scores higher than the right one."""
    clips = scored.targets[:, column] > 0
    wrong = scored.scores[clips].masked_fill(scored.targets[clips] > 0, 0.0)
    ahead = wrong.max(dim=1).values > scored.scores[clips, column]
    places = Counter(wrong.argmax(dim=1)[ahead].tolist())
    if not places:
        return ""
    place, count = places.most_common(1)[0]
    return f"{labels[place]} ({count})"


def class_row(scored: Scored, column: int, labels: list[str]) -> str:
    """Return the table row of one class on the test packages."""
    targets, scores = scored.targets[:, [column]], scored.scores[:, [column]]
    clips, tagged = targets[:, 0] > 0, scores[:, 0] >= THRESHOLD
    found = int((clips & tagged).sum())
    interval = bootstrap_interval(scores, targets, mean_average_precision, resamples=RESAMPLES)
    precision = f"{found / int(tagged.sum()):.2f}" if tagged.any() else "-"
    packages = len(set(scored.packages[clips.numpy()]))
    cells = [
        *(labels[column], f"{int(clips.sum())} ({packages})"),
        *(f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})", precision),
        *(f"{found / int(clips.sum()):.2f}", confused_with(scored, column, labels)),
    ]
    return "| " + " | ".join(cells) + " |"


def summary(scored: Scored, labels: list[str]) -> str:
    """Return the results over all classes."""
    parents = {parent for label in labels for parent in with_parents((label,))[1:]}
    leaves = [column for column, label in enumerate(labels) if label not in parents]
    narrow = replace(scored, logits=scored.logits[:, leaves], targets=scored.targets[:, leaves])
    good = int((average_precisions(scored.scores, scored.targets) >= GOOD).sum())
    unknown, tagged = ~scored.targets.any(dim=1), scored.scores >= THRESHOLD
    hits = (tagged & (scored.targets > 0)).sum()
    quiet = (~tagged[unknown]).all(dim=1).double().mean()
    return (
        f"{len(scored.targets)} clips of {len(set(scored.packages))} packages without training clips. "
        f"Mean AP {package_interval(scored)} over {len(labels)} classes, {package_interval(narrow)} over "
        f"the {len(leaves)} without subclasses; {good} classes reach {GOOD}. At a score of "
        f"{THRESHOLD}: precision {hits / tagged.sum():.2f}, recall {hits / scored.targets.sum():.2f}; "
        f"calibration error {calibration_error(scored):.3f}. Of {int(unknown.sum())} clips without a class "
        f"{100 * quiet:.0f} % get no tag."
    )


def table(scored: Scored, labels: list[str]) -> str:
    """Return Markdown for MODEL_CARD.md, best classes first."""
    order = np.argsort(-average_precisions(scored.scores, scored.targets).numpy())
    lines = [
        *(summary(scored, labels), ""),
        "| class | clips (packages) | AP (95 %) | precision at 0.5 | recall at 0.5 | confused most with |",
        "|---|---|---|---|---|---|",
        *(class_row(scored, int(column), labels) for column in order),
    ]
    return "\n".join(lines) + "\n"


def is_known(division: Fold, column: int, packages: dict[int, str]) -> bool:
    """Return whether a class has enough clips from several packages, or from another one for calibration."""
    clips = zip(division.train.rows, division.train.targets[:, column], strict=True)
    trained = [packages[row] for row, has_class in clips if has_class > 0]
    if len(trained) < MIN_CLIPS:
        return False
    return len(set(trained)) >= MIN_PACKAGES or bool(division.valid.targets[:, column].any())


def release(labelled: LabelledList, data: Path, start: str, out: Path) -> str:
    """Fit, calibrate and write the model; return its table."""
    rows = read_table(data, ("package",))
    packages = {row.number: row.cells["package"] for row in rows}
    (one,) = labelled.folds()
    model = load_model(start, device="cpu")
    kept = [
        column
        for column, label in enumerate(labelled.labels)
        if label != NONE and is_known(one, column, packages)
    ]
    labels = [labelled.labels[column] for column in kept]
    fit_head(model, encode(model, one.train), one.train.targets[:, kept], labels)
    valid = score(model, one.valid, kept, packages)
    print(f"mean AP on the validation packages {mean_average_precision(valid.scores, valid.targets):.3f}")
    calibrate(model, *fit_platt(valid.logits, valid.targets))
    save(model, out / NAME)
    return table(score(load_model(out / NAME, device="cpu"), one.test, kept, packages), labels)


def main() -> None:
    """Fit, calibrate and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="list written by tags.py")
    parser.add_argument("--model", required=True, help="model with the encoder to use")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = release(read_labelled(arguments.data), arguments.data, arguments.model, arguments.out)
    (arguments.out / "tags.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
