"""Fits m2d-mini-tags to the list of ``tags.py``, calibrates it, and says how good it is on unseen packages.

    python recipes/m2d-mini/tagger.py DATA/tags.csv --model OUT/further/export --out TAGGER

The encoder stays as it was pre-trained. The head is a linear discriminant for each class, its covariance
shrunk (``SHRINKAGE``), of whole clips' features. ``TAGGER/m2d-mini-tags`` is the model folder, in float16:
the head's logits are calibrated (Platt's scaling, folded into its weights and biases) by the validation
packages, so that of their clips with a score of 0.5 about half have the class; ``NONE`` is dropped, as are
classes that fewer than ``LEAST_CLIPS`` clips train, or that neither three packages train nor a validation
clip calibrates. ``TAGGER/tags.md`` is the table for MODEL_CARD.md: average precision (AP) of each class on
the test packages, precision and recall at 0.5, and which other class is most often put first. Intervals of
classes are bootstrapped over clips, those of means over packages.

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
SHRINKAGE = 0.5  # of covariances to the same in all directions
THRESHOLD = 0.5  # of a score: above it, a clip is tagged
GOOD = 0.5  # AP that a class should reach
RIDGE = 1.0  # holds each class's calibration to that of all; about the weight of a clip
CALIBRATION_STEPS = 200
RESAMPLES = 1000
LEAST_CLIPS = 10  # that train a class; with fewer it is named hardly ever, and wrongly then
LEAST_PACKAGES = 3  # that train a class which has no validation clip
BINS = 10  # of scores, for the calibration error


@dataclass(frozen=True)
class Scored:
    """What the model says of some clips."""

    logits: Tensor  # (N, C)
    targets: Tensor  # (N, C)
    packages: np.ndarray  # (N,) of names

    @property
    def scores(self) -> Tensor:
        """(N, C)"""
        return self.logits.sigmoid()


def encode(model: M2D, part: Subset) -> Tensor:
    """Features (N, K) of whole clips."""
    return model.encode_clip(part.files, batch_size=32, progress=True)


@torch.no_grad()
def fit_head(model: M2D, features: Tensor, targets: Tensor, labels: list[str]) -> None:
    """Gives the model a head of linear discriminants, one for each class against all other clips.

    Args:
        model: Its head is replaced.
        features: Of the training clips (N, K).
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
    """Logits of whole clips for the classes ``kept`` of the list's."""
    own = np.array([packages[row] for row in part.rows])
    return Scored(model.required_head()(encode(model, part)), part.targets[:, kept], own)


def fit_platt(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and offsets (C,) that make sigmoids of logits (N, C) probabilities.

    All classes share a factor and an offset; each class may differ from them as far as its clips pay for it.
    Those without any clip of the class keep the shared ones: that no clip has it says nothing of the class.
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
    """Scales and shifts the logits of a model's head."""
    linear = model.required_head().linear
    linear.weight.mul_(factor[:, None])
    linear.bias.mul_(factor).add_(offset)


def save(model: M2D, folder: Path) -> None:
    """Writes the model folder in float16."""
    source = "m2d-mini, pre-trained further, with a head fitted to clips of free packages, see MODEL_CARD.md"
    config = replace(model.config, name=NAME, license="Apache-2.0", source=source)
    save_halves(folder, model.state_dict(), config)


def package_interval(scored: Scored) -> str:
    """Mean AP with its interval over packages."""
    names, index = np.unique(scored.packages, return_inverse=True)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)  # (R, packages)
    counts = torch.from_numpy(draws[:, index])
    values = mean_average_precision.resampled(scored.scores, scored.targets, counts)
    low, high = np.nanpercentile(values.numpy(), [2.5, 97.5])
    return f"{mean_average_precision(scored.scores, scored.targets):.3f} ({low:.3f}-{high:.3f})"


def calibration_error(scored: Scored) -> float:
    """Mean distance of scores from the share of clips that have the class, over bins of all classes."""
    scores, targets = scored.scores.flatten(), scored.targets.flatten()
    bins = (scores * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for place in bins.unique():
        inside = bins == place
        error += float((scores[inside].mean() - targets[inside].mean()).abs() * inside.sum())
    return error / len(scores)


def confused_with(scored: Scored, column: int, labels: list[str]) -> str:
    """Which class that a clip does not have is most often scored above the one that it has."""
    clips = scored.targets[:, column] > 0
    wrong = scored.scores[clips].masked_fill(scored.targets[clips] > 0, 0.0)
    ahead = wrong.max(dim=1).values > scored.scores[clips, column]
    places = Counter(wrong.argmax(dim=1)[ahead].tolist())
    if not places:
        return ""
    place, count = places.most_common(1)[0]
    return f"{labels[place]} ({count})"


def class_row(scored: Scored, column: int, labels: list[str]) -> str:
    """One class on the test packages."""
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
    """Figures of all classes together."""
    parents = {parent for label in labels for parent in with_parents((label,))[1:]}
    leaves = [column for column, label in enumerate(labels) if label not in parents]
    narrow = replace(scored, logits=scored.logits[:, leaves], targets=scored.targets[:, leaves])
    good = int((average_precisions(scored.scores, scored.targets) >= GOOD).sum())
    unknown, tagged = ~scored.targets.any(dim=1), scored.scores >= THRESHOLD
    hits = (tagged & (scored.targets > 0)).sum()
    quiet = (~tagged[unknown]).all(dim=1).double().mean()
    return (
        f"{len(scored.targets)} clips of {len(set(scored.packages))} packages that gave no training clip. "
        f"Mean AP {package_interval(scored)} over {len(labels)} classes, {package_interval(narrow)} over "
        f"the {len(leaves)} that no other is a kind of; {good} classes reach {GOOD}. At a score of "
        f"{THRESHOLD}: precision {hits / tagged.sum():.2f}, recall {hits / scored.targets.sum():.2f}; "
        f"calibration error {calibration_error(scored):.3f}. Of {int(unknown.sum())} clips of no class "
        f"{100 * quiet:.0f} % get no tag."
    )


def table(scored: Scored, labels: list[str]) -> str:
    """Markdown for MODEL_CARD.md, the best classes first."""
    order = np.argsort(-average_precisions(scored.scores, scored.targets).numpy())
    lines = [
        *(summary(scored, labels), ""),
        "| class | clips (packages) | AP (95 %) | precision at 0.5 | recall at 0.5 | confused most with |",
        "|---|---|---|---|---|---|",
        *(class_row(scored, int(column), labels) for column in order),
    ]
    return "\n".join(lines) + "\n"


def is_known(division: Fold, column: int, packages: dict[int, str]) -> bool:
    """Whether a class has clips enough, of several packages or calibrated by a clip of another."""
    clips = zip(division.train.rows, division.train.targets[:, column], strict=True)
    trained = [packages[row] for row, has_class in clips if has_class > 0]
    if len(trained) < LEAST_CLIPS:
        return False
    return len(set(trained)) >= LEAST_PACKAGES or bool(division.valid.targets[:, column].any())


def release(labelled: LabelledList, data: Path, start: str, out: Path) -> str:
    """Fits, calibrates and writes the model; returns its table."""
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
    """Fits, calibrates, evaluates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="list that tags.py wrote")
    parser.add_argument("--model", required=True, help="whose encoder is taken")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = release(read_labelled(arguments.data), arguments.data, arguments.model, arguments.out)
    (arguments.out / "tags.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
