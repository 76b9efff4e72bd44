"""Copy a model into the package, in float16; store the configuration, log and curves of a run in ``runs``.

python recipes/m2d-mini/release.py weights OUT/average
python recipes/m2d-mini/release.py log OUT/first m2d-mini
python recipes/m2d-mini/release.py log OUT/longer m2d-mini-longer
python recipes/m2d-mini/release.py log OUT/further m2d-mini-x
python recipes/m2d-mini/release.py log OUT/speech m2d-mini-speech
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from m2d_hub.config import ModelConfig
from m2d_hub.pretrained.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "m2d_hub" / "weights" / "m2d-mini"
RUNS = Path(__file__).resolve().parent / "runs"
SOURCE = "pre-trained on free audio packages, see MODEL_CARD.md"
LOGGED_STEPS = 100  # between two rows of the log
MEAN_STEPS = 50  # averaged per point of a curve
COLUMNS = (
    *("step", "epoch", "loss", "m2d", "offline", "lr", "tau", "grad_norm", "seconds", "data_seconds"),
    *("rank_me", "explained_variance_auc"),
)
CURVES = (
    ("m2d", "latents or pixels, MSE"),
    ("offline", "labels or features"),
    ("rank_me", "RankMe"),
    ("lr", "rate"),
)


def release(model: Path) -> None:
    """Write the weights and their configuration to the folder that ``load_model("m2d-mini")`` reads."""
    checkpoint = load_checkpoint(model)
    config = dataclasses.replace(checkpoint.config, name="m2d-mini", license="Apache-2.0", source=SOURCE)
    save_halves(FOLDER, checkpoint.tensors, config)


def save_halves(folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write a model folder in float16; integer tensors stay integers."""
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    save_checkpoint(folder, halves, config)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return one row per step; for steps repeated after an interruption, the last."""
    steps = {}
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if "m2d" in row:
                steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def keep_log(run: Path, name: str) -> None:
    """Write the configuration, every ``LOGGED_STEPS``-th step and the curves of a run."""
    known = json.loads((run / "config.json").read_text(encoding="utf-8"))
    del known["options"]  # folder names
    (RUNS / f"{name}.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    steps = read_metrics(run)
    with (RUNS / f"{name}.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        for row in steps:
            if row["step"] == 1 or row["step"] % LOGGED_STEPS == 0:
                writer.writerow(f"{row[name]:.6g}" if name in row else "" for name in COLUMNS)
    draw(steps, RUNS / f"{name}.png", known["global_batch"])


def draw(steps: list[dict[str, float]], path: Path, batch: int) -> None:
    """Draw curves over steps, one above the other."""
    figure, axes = plt.subplots(len(CURVES), figsize=(7.2, 7.5), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes, CURVES, strict=True):
        points = np.array([(row["step"], row[name]) for row in steps if name in row])
        if len(points) == len(steps):
            whole = len(points) // MEAN_STEPS * MEAN_STEPS
            points = points[:whole].reshape(-1, MEAN_STEPS, 2).mean(axis=1)
        axis.plot(*points.T)
        axis.set_ylabel(title)
    axes[1].set_yscale("log")
    axes[-1].set_xlabel(f"steps of {batch} clips; means of {MEAN_STEPS} steps")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Release a model, or store the log of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    weights = parts.add_parser("weights")
    weights.add_argument("model", type=Path, help="model folder")
    weights.set_defaults(do=release)
    log = parts.add_parser("log")
    log.add_argument("run", type=Path, help="folder of a finished run")
    log.add_argument("name", help="name of the files in runs")
    log.set_defaults(do=keep_log)
    given = vars(parser.parse_args())
    given.pop("do")(**given)


if __name__ == "__main__":
    main()
